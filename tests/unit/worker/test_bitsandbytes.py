"""Models that bitsandbytes has packed: they draw what their weights stand for, and stay packed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.engine.local import start
from omnimuse.loader.foreign import FLOATS
from omnimuse.loader.headers import stored_in
from omnimuse.loader.sources import Source
from omnimuse.quant.linear import QuantizedLinear, quantized_layers
from omnimuse.quant.packings import Rows
from tests.checkpoints import bitsandbytes, qwen3, z_image
from tests.invariants.conftest import Subject, run

Z_IMAGE = z_image.FAMILIES[0]
KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)]


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_what_it_packed_draws_what_the_weights_stand_for_and_stays_packed(
    kind: str, double: bool, z_image_folder: Path, tmp_path: Path
) -> None:
    draws_as_floats(partial(bitsandbytes.pack, kind=kind, double=double), kind, z_image_folder, tmp_path)


def draws_as_floats(pack: Callable[[Path], dict[str, Tensor]], kind: str, folder: Path, tmp_path: Path) -> None:
    """What the model in `folder` draws when its components are packed so, and of the floats that these weights are
    then: the same. Weights are packed as `kind`, or are floats where it is that.
    """
    small, floats = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("small", "floats"))
    for component in ("transformer", "text_encoder"):
        bitsandbytes.unpack(floats / component, pack(small / component))
        assert kind in {each.kind for each in stored_in(small / component).values()}
    drawn = []
    for each in (small, floats):
        found, layers = first_drawn(each)
        assert bool(layers) == (each == small and kind != FLOATS)
        drawn.append(found)
    torch.testing.assert_close(*drawn, rtol=1e-5, atol=1e-5)


def first_drawn(folder: Path) -> tuple[Tensor, dict[str, QuantizedLinear]]:
    """What is drawn for the family's first wish, and the packed layers of the network that draws."""
    subject = Subject(Z_IMAGE, folder)
    with contextlib.closing(start(subject.config())) as engine:
        found: Tensor = run(engine, subject.ask(0))[0]
        return found, quantized_layers(engine.runner.pipeline.ctx.network("transformer"))


@pytest.mark.parametrize("inputs", [128, 96])
def test_a_part_of_the_rows_or_columns_is_that_of_the_whole(inputs: int, tmp_path: Path) -> None:
    weight = torch.randn(6, inputs, generator=torch.Generator().manual_seed(1))
    save_file({"layers.weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    expected = bitsandbytes.pack(tmp_path, "nf4", double=True)["layers.weight"]
    [(name, stored)] = stored_in(tmp_path).items()
    with safe_open(tmp_path / "model.safetensors", "pt") as handle:
        source = Source(handle, name, stored)
        for content, part in (
            (source.whole(), expected),
            (source.part(0, 1, 3), expected[1:3]),
            (source.part(1, 2, 70), expected[:, 2:70]),
        ):
            assert torch.equal(content.floats() if isinstance(content, Rows) else content, part)


def test_a_language_model_in_four_bits_writes_what_its_weights_stand_for(tmp_path: Path) -> None:
    writes_as_floats(partial(bitsandbytes.pack, kind="nf4"), tmp_path)


def writes_as_floats(pack: Callable[[Path], dict[str, Tensor]], tmp_path: Path) -> None:
    """What a language model writes when it is packed so, and of the floats that its weights are then: the same."""
    from omnimuse import Omni

    folders = [qwen3.build(tmp_path / name) for name in ("small", "floats")]
    bitsandbytes.unpack(folders[1], pack(folders[0]))
    texts = []
    for folder in folders:
        with Omni(str(folder), device="cpu", dtype="float32") as omni:
            [result] = omni.generate("a red circle", max_tokens=12, temperature=0, progress=False)
            texts.append(result.written[0].tokens)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"quant_type": "nf4"}, "does not say how weights were packed"),
        ({"quant_type": "nf4", "shape": 7}, "does not say how weights were packed"),
    ],
)
def test_what_is_not_read_is_refused_by_name(about: dict[str, object], says: str, tmp_path: Path) -> None:
    state = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    tensors = {"a.weight": torch.zeros(128, 1, dtype=torch.uint8), "a.weight.quant_state.bitsandbytes__nf4": state}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=says):
        stored_in(tmp_path)


def packed_file(folder: Path, kind: str, double: bool = False) -> dict[str, Tensor]:
    """The tensors of a packed layer, `layers.weight` [6, 128], and what belongs to it."""
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(1))
    save_file({"layers.weight": weight}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    bitsandbytes.pack(folder, kind, double)
    return load_file(folder / "model.safetensors")


def read_all(folder: Path) -> dict[str, Tensor | Rows]:
    """Whatever the file holds, as a start reads it."""
    with safe_open(folder / "model.safetensors", "pt") as handle:
        return {name: Source(handle, name, stored).whole() for name, stored in stored_in(folder).items()}


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_what_lacks_a_part_or_has_a_wrong_one_is_refused_by_its_name(kind: str, double: bool, tmp_path: Path) -> None:
    tensors = packed_file(tmp_path, kind, double)
    read_all(tmp_path)
    for name in [name for name in tensors if name.endswith(("weight", "SCB", "absmax", "nested_quant_map"))]:
        whole, rest = tensors[name], {other: each for other, each in tensors.items() if other != name}
        wrong = [rest | {name: each.clone()} for each in (whole[:-1], whole[:0])]
        if kind != "int8":  # without one of the two, nothing says that it was packed: the network refuses the names
            wrong += [rest, rest | {name: whole.to(torch.int64)}]
        for damaged in wrong:
            save_file(damaged, tmp_path / "model.safetensors")
            with pytest.raises(ModelError, match=r"model.safetensors: layers\..*; get the file again"):
                read_all(tmp_path)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_table_of_other_numbers_than_its_name_says_is_refused(kind: str, tmp_path: Path) -> None:
    tensors = packed_file(tmp_path, kind)
    table = tensors["layers.weight.quant_map"]
    save_file(tensors | {"layers.weight.quant_map": table.bfloat16()}, tmp_path / "model.safetensors")
    read_all(tmp_path)
    other = table.clone()
    other[1] += 0.005
    for wrong in (other, table.flip(0), table[:-1].clone(), table * float("nan")):
        save_file(tensors | {"layers.weight.quant_map": wrong}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=rf"layers.weight.quant_map has other numbers than {kind}"):
            read_all(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-6, -128]},
        {"shape": [6, 64]},
        {"shape": [10**12, 10**12]},
        {"blocksize": 0},
        {"blocksize": "x"},
        {"blocksize": None},
        {"blocksize": 32},
        {"nested_blocksize": 0},
        {"nested_blocksize": "x"},
        {"nested_offset": None},
        {"nested_offset": "x"},
    ],
)
def test_a_description_that_does_not_fit_its_weights_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    tensors = packed_file(tmp_path, "nf4", double=True)
    [name] = [name for name in tensors if "quant_state" in name]
    state = json.loads(bytes(tensors[name].tolist())) | change
    tensors[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model.safetensors: layers\..*; get the file again"):
        read_all(tmp_path)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_may_be_held_in_another_format_of_the_same_bytes(storage: torch.dtype, tmp_path: Path) -> None:
    tensors = packed_file(tmp_path, "nf4")
    found = []
    for weight in (tensors["layers.weight"], tensors["layers.weight"].view(-1).view(storage)[:, None]):
        save_file({**tensors, "layers.weight": weight}, tmp_path / "model.safetensors")
        [(name, stored)] = stored_in(tmp_path).items()
        with safe_open(tmp_path / "model.safetensors", "pt") as handle:
            content = Source(handle, name, stored).whole()
        assert isinstance(content, Rows)
        found.append(content.floats())
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("double", "inputs"), [(False, 128), (True, 128), (True, 96)])
def test_numbers_are_the_librarys_to_the_bit(kind: str, double: bool, inputs: int, tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes.functional", reason="it is not installed")
    from omnimuse.loader.bitsandbytes import packed as found_in

    weight = torch.randn(6, inputs, generator=torch.Generator().manual_seed(0))
    packed, state = library.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
    told = {f"a.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    save_file({"a.weight": packed, **told}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as handle:
        kinds = {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
        found = found_in(handle, kinds)["a.weight"].content(handle)
    state.shape = torch.Size([1, weight.numel()])  # of blocks that cross rows its kernel for CPUs (0.50) makes others
    expected = library.dequantize_4bit(packed, state).view(weight.shape)
    assert torch.equal(found.floats() if isinstance(found, Rows) else found, expected)
    assert (expected - weight).abs().mean() < 0.11, "the library has understood itself"
