"""GGUF files draw what diffusers reads in them, their weights packed as they are, in the names that files have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
from diffusers import GGUFQuantizationConfig
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.cli import main
from omnimuse.compat.opening import is_file
from omnimuse.compat.single_file import convert, kind_of
from omnimuse.compat.weights_file import Content, read_file
from omnimuse.core.config import QuantConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.headers import opened, stored_in
from omnimuse.loader.sources import Source
from omnimuse.quant.blocks import BLOCKS
from omnimuse.quant.grids import hold_still
from omnimuse.quant.linear import quantized_layers
from omnimuse.quant.packings import Rows
from omnimuse.worker.find import our_components
from tests.checkpoints import qwen_image, wan, z_image
from tests.checkpoints.gguf_file import exact, random_blocks, usual, write
from tests.checkpoints.single_file import Tensors, weights
from tests.checkpoints.single_file import wan as wan_names
from tests.invariants.conftest import Subject, run
from tests.unit.compat.test_single_file import original


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_stand_for_what_gguf_says_to_the_bit(kind: str) -> None:
    raw = random_blocks(kind, 5, 512)
    found = BLOCKS[kind].unpack({"weight": torch.from_numpy(raw)})
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType[kind])
    assert found.shape == (5, 512) and np.array_equal(found.numpy(), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize("kind", ["Q3_K", "IQ4_XS", "IQ3_S", "IQ2_XXS"])
def test_layers_of_few_bits_are_compiled_whole(kind: str) -> None:
    blocks, x = BLOCKS[kind], torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    parts = {"weight": torch.from_numpy(random_blocks(kind, 5, 512))}

    def multiplied(x: Tensor) -> Tensor:
        return blocks.multiply(x, parts, torch.nn.functional.linear)

    torch._dynamo.reset()
    hold_still()
    found = torch.compile(multiplied, backend="eager", fullgraph=True)(x)
    expected = gguf.quants.dequantize(parts["weight"].numpy(), GGMLQuantizationType[kind])
    assert torch.equal(found, torch.nn.functional.linear(x, torch.from_numpy(expected)))


@dataclass(frozen=True)
class Kind:
    """A kind of files: how to make a checkpoint, what its file calls the weights, what is the network's class,
    and how its layers are packed: some of several formats, where the file has projections apart."""

    family: Any
    build: Callable[[Path, int], Path]
    names: Callable[[Tensors], Tensors]
    cls: str
    packings: frozenset[str] = frozenset({"Blocks", "Stacked"})


KINDS = {
    "authors' names, projections in one": Kind(
        z_image.FAMILIES[0],
        lambda folder, seed: z_image.build(folder, seed=seed),
        original,
        "ZImageTransformer2DModel",
        frozenset({"Blocks"}),
    ),
    "the library's names": Kind(
        qwen_image.FAMILIES[0],
        lambda folder, seed: qwen_image.build(folder, seed=seed),
        dict,
        "QwenImageTransformer2DModel",
    ),
    "authors' names": Kind(
        wan.FAMILIES[0], lambda folder, seed: wan.build(folder, "2.1", seed=seed), wan_names, "WanTransformer3DModel"
    ),
}


def numbers(folder: Path) -> Tensors:
    """Every tensor of a component's folder, unpacked."""
    found = {}
    for name, stored in stored_in(folder).items():
        with opened(stored.path) as handle:
            content = Source(handle, name, stored).whole()
        found[name] = content.floats() if isinstance(content, Rows) else content
    return found


def latents(subject: Subject) -> tuple[Tensor, set[str]]:
    """What a checkpoint draws, and the kinds of packings that its network has."""
    engine = start(subject.config())
    try:
        layers = quantized_layers(engine.runner.pipeline.ctx.components.wherever("transformer"))
        return run(engine, subject.ask(0))[0], {type(layer.scheme).__name__ for layer in layers.values()}
    finally:
        engine.close()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_gguf_file_draws_what_the_weights_do_that_diffusers_reads_in_it(
    kind: Kind, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like, theirs = kind.build(tmp_path / "like", 5), kind.build(tmp_path / "theirs", 0)
    file = write(tmp_path / "a.gguf", kind.names(weights(theirs / "transformer")), usual)
    assert main(["convert", str(file), "--like", str(like), "-o", str(tmp_path / "made")]) == 0
    assert "transformer from a.gguf" in capsys.readouterr().out

    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    read = getattr(diffusers, kind.cls).from_single_file(
        str(file), quantization_config=config, config=str(like), subfolder="transformer", torch_dtype=torch.float32
    )
    theirs_read, ours_read = read.dequantize().state_dict(), numbers(tmp_path / "made" / "transformer")
    assert theirs_read.keys() <= ours_read.keys()
    for name, tensor in theirs_read.items():  # they round to float16 on the way
        difference = (ours_read[name].float() - tensor.float()).norm()
        assert float(difference) <= 1e-3 * float(tensor.float().norm()), name

    plain = write(tmp_path / "plain.gguf", exact(file), lambda name, tensor: "F32")
    convert(plain, Checkpoint(like), tmp_path / "plain")
    found, packings = latents(Subject(kind.family, tmp_path / "made"))
    expected, none = latents(Subject(kind.family, tmp_path / "plain"))
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert packings == kind.packings and not none


def test_explain_tells_how_a_file_is_packed_and_quantize_is_refused_beside_it(
    z_image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.gguf", original(weights(z_image_folder / "transformer")), usual)
    made = convert(file, Checkpoint(z_image_folder), tmp_path / "made", ours=our_components()["ZImagePipeline"])
    assert made.from_file == ("transformer",)
    assert main(["explain", str(tmp_path / "made")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "its files are packed so: " in told and " x Q4_0, " in told
    twice = Subject(z_image.FAMILIES[0], tmp_path / "made").config(quantize=QuantConfig({"": "int8"}))
    with pytest.raises(ConfigError, match=r"quantize transformer=int8 cannot be: its files are packed already"):
        start(twice)


def test_a_converter_that_knows_its_sizes_gets_rows_in_their_places() -> None:
    """The library's of FLUX.1 cuts matrices at published widths; marks of rows need no memory for the rest."""
    width, wide = 3072, 12288
    sizes = {f"single_blocks.0.{name}": rows for name, rows in (("modulation.lin", 3 * width), ("linear2", width))}
    sizes |= {"single_blocks.0.linear1": 3 * width + wide, "final_layer.adaLN_modulation.1": 2 * width}
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        sizes |= {f"{block}_mod.lin": 6 * width, f"{block}_attn.qkv": 3 * width, f"{block}_attn.proj": width}
        sizes |= {f"{block}_mlp.0": wide, f"{block}_mlp.2": width, f"{side}_in": width}
    for name in ("time_in", "vector_in"):
        sizes |= {f"{name}.in_layer": width, f"{name}.out_layer": width}
    sizes["final_layer.linear"] = 64
    packed = [
        Rows("Q8_0", 32, {"weight": torch.arange(rows).view(-1, 1).expand(rows, 34).to(torch.int32)})
        for rows in sizes.values()
    ]
    tensors = {
        f"{name}.weight": torch.complex(
            torch.full((len(rows.parts["weight"]), 1), number, dtype=torch.float64),
            torch.arange(len(rows.parts["weight"]), dtype=torch.float64).unsqueeze(1),
        )
        for number, (name, rows) in enumerate(zip(sizes, packed, strict=True))
    }
    content = Content(dict(tensors), packed)
    biases = {f"{name}.bias": torch.zeros(rows) for name, rows in sizes.items()}
    norms = [
        f"double_blocks.0.{side}_attn.norm.{part}_norm.scale" for side in ("img", "txt") for part in ("query", "key")
    ]
    norms += [f"single_blocks.0.norm.{part}_norm.scale" for part in ("query", "key")]
    named = {**tensors, **biases, **{name: torch.ones(128) for name in norms}}
    made = content.resolved(convert_flux_transformer_checkpoint_to_diffusers(named))

    def rows(name: str) -> list[int]:
        found = made[name]
        assert isinstance(found, Rows)
        return found.parts["weight"][:, 0].tolist()

    assert rows("single_transformer_blocks.0.attn.to_k.weight") == list(range(width, 2 * width))
    assert rows("single_transformer_blocks.0.proj_mlp.weight") == list(range(3 * width, 3 * width + wide))
    assert rows("transformer_blocks.0.attn.add_v_proj.weight") == list(range(2 * width, 3 * width))
    swapped = [*range(width, 2 * width), *range(width)]
    assert rows("norm_out.linear.weight") == swapped, "scale and shift change places"


def test_formats_that_are_not_read_and_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    with pytest.raises(ModelError, match="there is no file"):
        read_file(file)
    file.write_bytes(b"GGUF and nothing else")
    assert is_file(str(file))
    with pytest.raises(ModelError, match=r"cannot be read: it is no GGUF file, or damaged or cut short"):
        read_file(file)
    with pytest.raises(ModelError, match=r"cannot be read: it is no GGUF file, or damaged or cut short"):
        kind_of(file)
    writer = gguf.GGUFWriter(file, "tiny")
    writer.add_tensor("a.weight", np.zeros((1, 56), np.uint8), raw_dtype=GGMLQuantizationType.IQ1_M)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"a.weight is packed as IQ1_M, which is not read; use a file of F32, .*Q4_K"):
        read_file(file)


@pytest.mark.parametrize(
    ("stored", "original"), [((4, 32), (4, 33)), ((4, 32), (-4, -32)), ((4, 0), None), ((4, 0), (4, 0))]
)
@pytest.mark.parametrize("kind", [GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0])
def test_tensors_of_another_size_than_they_stand_for_are_refused(
    stored: tuple[int, int], original: tuple[int, ...] | None, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    file, numbers = tmp_path / "a.gguf", np.ones(stored, np.float32)
    data = numbers if kind == GGMLQuantizationType.F32 else gguf.quantize(np.ones((4, 32), np.float32), kind)
    writer = gguf.GGUFWriter(file, "tiny")
    if original is not None:
        writer.add_array("comfy.gguf.orig_shape.a.weight", list(original))
    writer.add_tensor("a.weight", data[:, : data.shape[1] * stored[1] // 32], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"a.weight has \[.*\] numbers for weights of \[.*\]; get it again"):
        read_file(file)


@pytest.mark.parametrize("broken", ["layers.0.attention.qkv.weight", "layers.1.ffn_norm1.weight"])
def test_what_is_no_number_is_not_converted_and_told_by_the_name_that_the_file_has(
    z_image_folder: Path, tmp_path: Path, broken: str
) -> None:
    """Packed or not."""
    named = original(weights(z_image_folder / "transformer"))
    named[broken] = named[broken] * float("nan")
    with np.errstate(all="ignore"):
        file = write(tmp_path / "a.gguf", named, eight)
    told = rf"a\.gguf: .* numbers of {broken} are NaN or infinite.*get the file again, or use another one"
    with pytest.raises(ModelError, match=told):
        convert(file, Checkpoint(z_image_folder), tmp_path / "made", ours=our_components()["ZImagePipeline"])
    assert not (tmp_path / "made").exists()


def test_no_number_as_a_scale_is_refused_with_the_name(z_image_folder: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", original(weights(z_image_folder / "transformer")), eight)
    convert(file, Checkpoint(z_image_folder), tmp_path / "made", ours=our_components()["ZImagePipeline"])
    stored = stored_in(tmp_path / "made" / "transformer")["layers.0.attention.to_q.weight"]
    with opened(stored.path) as handle:
        about = handle.metadata()
    tensors = load_file(stored.path)
    tensors[stored.parts["weight"]][0, :2] = 0xFF  # the scale of a block, in float16
    save_file(tensors, stored.path, about)
    with pytest.raises(ModelError, match=r"numbers of layers.0.attention.to_q.weight are NaN or infinite"):
        start(Subject(z_image.FAMILIES[0], tmp_path / "made").config())


def eight(name: str, tensor: Tensor) -> str:
    """The format of a tensor in a file in which products of attention have 8 bits."""
    return "Q8_0" if tensor.ndim == 2 and "attention" in name else "F32"
