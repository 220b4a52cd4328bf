"""Weights packed in files, by bitsandbytes, torchao or as GGUF: ranks that share them draw and write what one does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from omnimuse.compat.single_file import convert
from omnimuse.core.config import ParallelConfig
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.quant.blocks import BLOCKS
from tests.checkpoints import bitsandbytes, gguf_file, llama_cpp, torchao
from tests.checkpoints.packed import ours_of
from tests.checkpoints.single_file import Tensors, weights
from tests.dist.test_shared_work import PLAIN, QWEN, Job, Z, on_rank
from tests.dist.test_telling_together import TELLERS, check, told
from tests.dist.test_telling_together import on_rank as tell
from tests.ranks import play
from tests.unit.compat.test_single_file import original

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]
TWO = ParallelConfig(tensor=2)
KindOf = Callable[[str, Tensor], str]
"""In which format a tensor is packed, by its name."""
Pack = Callable[[Path, Path], object]
"""Makes of the checkpoint in a folder one at another path, whose files are packed."""


def by_bitsandbytes(kind: str, double: bool, folder: Path, made: Path) -> None:
    shutil.copytree(folder, made)
    bitsandbytes.pack(made / "transformer", kind, double)


def by_torchao(kind: str, folder: Path, made: Path) -> None:
    shutil.copytree(folder, made)
    torchao.pack(made / "transformer", kind)


def in_gguf(names: Callable[[Tensors], Tensors], kind_of: KindOf, folder: Path, made: Path) -> None:
    """As people share it: a file of the transformer alone, by these names."""
    file = gguf_file.write(made.with_suffix(".gguf"), names(weights(folder / "transformer")), kind_of)
    like = Checkpoint(folder)
    convert(file, like, made, ours=ours_of(like))


def in_ggufs(folder: Path, made: Path) -> None:
    """The transformer so, and its text encoder as llama.cpp writes it."""
    drawing = made.with_name(f"{made.name}-drawing")
    in_gguf(dict, gguf_file.usual, folder, drawing)
    like = Checkpoint(drawing)
    convert(llama_cpp.write(made.with_suffix(".gguf"), folder / "text_encoder"), like, made, ours=ours_of(like))


def alike(kind: str, name: str, tensor: Tensor) -> str:
    """All that has whole blocks in one format."""
    whole = tensor.ndim == 2 and tensor.shape[1] % BLOCKS[kind].inputs == 0
    return kind if whole and "pad_token" not in name else "F32"


BY_TORCHAO = ("int8", "int4", "int4-pairs", "fp8", "tiles", "mxfp8", "nvfp4")
PACKED: dict[str, tuple[str, Pack]] = {
    "nf4": (Z, partial(by_bitsandbytes, "nf4", False)),
    "nf4, factors too": (Z, partial(by_bitsandbytes, "nf4", True)),
    "fp4": (Z, partial(by_bitsandbytes, "fp4", False)),
    "int8": (Z, partial(by_bitsandbytes, "int8", False)),
    **{f"{kind} of torchao": (Z, partial(by_torchao, kind)) for kind in BY_TORCHAO},
    **{f"{kind}, in one": (Z, partial(in_gguf, original, partial(alike, kind))) for kind in ("Q8_0", "Q4_0")},
    "several formats, in one": (Z, partial(in_gguf, original, gguf_file.usual)),
    "Q8_0, apart": (QWEN, partial(in_gguf, dict, partial(alike, "Q8_0"))),
    "several formats, apart": (QWEN, partial(in_gguf, dict, gguf_file.usual)),
    "its encoder, too": (Z, in_ggufs),
    "an encoder in part": (QWEN, in_ggufs),
}


@pytest.mark.costly
def test_ranks_draw_what_one_does_of_weights_that_a_file_has_packed(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    jobs = []
    for number, (name, pack) in enumerate(PACKED.values()):
        pack(tiny(name), tmp_path / f"{number}")
        jobs.append(Job(name, TWO, PLAIN, tmp_path / f"{number}", tmp_path / f"{number}.safetensors"))
    play(on_rank, 2, jobs, tmp_path / "meeting", ranks=2)
    wrong = []
    for job, kind in zip(jobs, PACKED, strict=True):
        found = load_file(job.results)
        for index, tensor in enumerate(job.draw(ParallelConfig())):
            error = float((found[str(index)] - tensor).norm() / tensor.norm())
            if not error <= 1e-5:
                wrong.append(f"{kind}, request {index}: {error:.1e}")
    assert not wrong


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("parallel", [TWO, ParallelConfig(pipe=2)], ids=["tensor", "pipe"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_ranks_write_what_one_does_of_weights_that_a_file_has_packed(
    kind: str, parallel: ParallelConfig, tmp_path: Path
) -> None:
    [writer] = [teller for teller in TELLERS if teller.name == "writes-Qwen3ForCausalLM"]
    folder, file = writer.build(tmp_path / "packed"), tmp_path / "told.safetensors"
    asks = writer.asks(folder)
    bitsandbytes.pack(folder, kind)
    play(tell, parallel, folder, asks, file, ranks=2)
    check(load_file(file), told(folder, asks, ParallelConfig()))
