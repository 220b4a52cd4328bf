"""Models that torchao has packed: they draw what their weights stand for, and stay packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import PACKERS
from omnimuse.loader.foreign import FLOATS
from omnimuse.loader.headers import stored_in
from omnimuse.loader.libraries import READERS
from omnimuse.loader.torchao_tiles import ELEMENTS
from omnimuse.quant.codes import MICRO
from omnimuse.quant.packings import NARROW_INT4, PACKINGS, Rows
from omnimuse.quant.schemes import SCHEMES
from tests.checkpoints import torchao
from tests.unit.worker.test_bitsandbytes import (
    Z_IMAGE,
    draws_as_floats,
    first_drawn,
    read_all,
    writes_as_floats,
)

KEPT = {
    "int8": "int8",
    "int8-dynamic": "int8-dynamic",
    "fp8": "fp8",
    "int4": NARROW_INT4,
    "int4-pairs": NARROW_INT4,
    "int8-groups": FLOATS,
    "tiles": NARROW_INT4,
    **{kind: kind for kind in MICRO},
}
"""As what each of its kinds is kept here."""


def test_every_library_that_is_read_is_one_that_configurations_may_name() -> None:
    assert tuple(READERS) == PACKERS


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("kind", [kind for kind in KEPT if kind != "int8-dynamic"])
def test_what_it_packed_draws_what_the_weights_stand_for_and_stays_packed(
    kind: str, z_image_folder: Path, tmp_path: Path
) -> None:
    draws_as_floats(partial(torchao.pack, kind=kind), KEPT[kind], z_image_folder, tmp_path)


def test_where_it_rounds_inputs_they_are_rounded(z_image_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(z_image_folder, tmp_path / "small"))
    torchao.pack(folder / "transformer", "int8-dynamic")
    _, layers = first_drawn(folder)
    assert layers and {each.packing for each in layers.values()} == {PACKINGS["int8-dynamic"]}


def test_a_language_model_that_it_packed_writes_what_its_weights_stand_for(tmp_path: Path) -> None:
    writes_as_floats(partial(torchao.pack, kind="int8"), tmp_path)


def packed_file(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, str], torch.Tensor]:
    """A packed layer, `layers.weight` [6, 128]: the file's tensors and notes, and the floats that it stands for."""
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(1))
    save_file({"layers.weight": weight, "layers.bias": torch.zeros(6)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    floats = torchao.pack(folder, kind)["layers.weight"]
    with safe_open(folder / "model.safetensors", "pt") as handle:
        return load_file(folder / "model.safetensors"), handle.metadata(), floats


@pytest.mark.parametrize("kind", KEPT)
def test_what_lacks_a_part_or_has_a_wrong_one_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    tensors, notes, floats = packed_file(tmp_path, kind)
    file = tmp_path / "model.safetensors"
    [found] = [each for name, each in read_all(tmp_path).items() if name == "layers.weight"]
    torch.testing.assert_close(found.floats() if isinstance(found, Rows) else found, floats, rtol=1e-6, atol=1e-6)
    for name in [name for name in tensors if "_weight_" in name]:
        whole, rest = tensors[name], {other: each for other, each in tensors.items() if other != name}
        some = torch.atleast_1d(whole)  # of factors in blocks nobody can tell for how many rows they are
        fewer = some[..., :-1] if kind in MICRO else some[:-1]
        wrong = [rest, *(rest | {name: each} for each in (fewer, some[:0], whole.to(torch.int64)))]
        for damaged in wrong:
            save_file({each: tensor.clone() for each, tensor in damaged.items()}, file, notes)
            with pytest.raises(ModelError, match=r"model.safetensors: layers\..*; get the file again"):
                read_all(tmp_path)
    for note, says in (
        ("{}", "does not say how torchao packed layers.weight"),
        ("7", "does not say how"),
        ("[", "how"),
    ):
        save_file(tensors, file, notes | {"layers.weight": note})
        with pytest.raises(ModelError, match=says):
            read_all(tmp_path)
    about = json.dumps(json.loads(notes["layers.weight"]) | {"_type": "Int4PlainInt32Tensor"})
    save_file(tensors, file, notes | {"layers.weight": about})
    with pytest.raises(
        ModelError, match=r"layers\.weight was packed by torchao as Int4PlainInt32Tensor, which is not read; I"
    ):
        read_all(tmp_path)


def test_weights_that_another_file_of_the_checkpoint_has_are_read_there(tmp_path: Path) -> None:
    tensors, notes, _ = packed_file(tmp_path, "int8")
    (tmp_path / "model.safetensors").unlink()
    others = {name: each for name, each in tensors.items() if "_weight_" not in name}
    first, second = (tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    save_file(others, first, notes)
    save_file({name: each for name, each in tensors.items() if name not in others}, second, notes)
    index = {name: (first if name in others else second).name for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert {name: each.kind for name, each in stored_in(tmp_path).items()} == {
        "layers.weight": "int8",
        "layers.bias": "F32",
    }
    scale = "layers._weight_scale"
    save_file(others | {scale: tensors[scale]}, first, notes)
    save_file({name: each for name, each in tensors.items() if name not in (*others, scale)}, second, notes)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | {scale: first.name}}))
    with pytest.raises(ModelError, match=r"is not in the file that has the rest of layers\.weight.*larger files"):
        stored_in(tmp_path)


@pytest.mark.parametrize("shape", [(48, 96), (200, 320)])
@pytest.mark.parametrize("kind", MICRO)
def test_formats_with_factors_for_few_inputs_are_the_librarys_to_the_bit(
    kind: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip("torchao", reason="it is not installed")
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    made = []
    for blocks in (False, True):
        if kind == "nvfp4":
            all_ = per_tensor_amax_to_scale(weight.abs().max())
            made += [NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=all_, is_swizzled_scales=blocks)]
            made += [NVFP4Tensor.to_nvfp4(weight, is_swizzled_scales=blocks)]
        else:
            [element] = [each for each, (name, _) in ELEMENTS.items() if name == kind]
            made += [MXTensor.to_mx(weight, getattr(torch, element), 32, is_swizzled_scales=blocks)]
    (tmp_path / "config.json").write_text("{}")
    for each in made:
        tensors, notes = flatten_tensor_state_dict({"layers.weight": each})
        save_file(tensors, tmp_path / "model.safetensors", notes)
        found = read_all(tmp_path)["layers.weight"]
        assert isinstance(found, Rows) and found.packing == kind
        assert torch.equal(found.floats(), each.dequantize(torch.float32))


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        (
            "mxfp8",
            {"elem_dtype": "fp6_e2m3"},
            "layers.weight has numbers of MX in fp6_e2m3, which are not read; float8",
        ),
        ("mxfp4", {"block_size": 16}, "layers.weight has factors for every 16 numbers of mxfp4.*; for 32 are"),
        ("nvfp4", {"block_size": "16"}, "layers.weight has factors for every 16 numbers of nvfp4"),
        ("tiles", {"block_size": [1, 0]}, "layers.weight is no Int4TilePackedTo4dTensor by what its note"),
        ("tiles", {"block_size": 32}, "is no Int4TilePackedTo4dTensor"),
        ("tiles", {"shape": [6, 2048]}, "is no Int4TilePackedTo4dTensor"),
        ("tiles", {"shape": [9, 128]}, "is no Int4TilePackedTo4dTensor"),
        ("tiles", {"shape": [-6, 128]}, "is no Int4TilePackedTo4dTensor"),
    ],
)
def test_notes_that_say_what_is_not_read_are_refused(
    kind: str, change: dict[str, object], says: str, tmp_path: Path
) -> None:
    tensors, notes, _ = packed_file(tmp_path, kind)
    note = json.loads(notes["layers.weight"])
    note["_data"] |= change
    save_file(tensors, tmp_path / "model.safetensors", notes | {"layers.weight": json.dumps(note)})
    with pytest.raises(ModelError, match=says):
        read_all(tmp_path)


@pytest.mark.parametrize("kind", KEPT)
def test_a_note_that_is_broken_anywhere_is_read_or_refused_and_no_fault_of_ours(kind: str, tmp_path: Path) -> None:
    tensors, notes, _ = packed_file(tmp_path, kind)
    note, refused = json.loads(notes["layers.weight"]), 0
    for place in places(note):
        for value in (None, -1, "x", [[]], {"_data": []}):
            broken = json.loads(json.dumps(note))
            *above, last = place
            reduce(getitem, above, broken)[last] = value
            save_file(tensors, tmp_path / "model.safetensors", notes | {"layers.weight": json.dumps(broken)})
            try:
                read_all(tmp_path)
            except ModelError:
                refused += 1
    assert refused


def places(note: Any) -> Iterator[tuple[str | int, ...]]:
    """Of everything in a note, the keys that lead there."""
    entries = note.items() if isinstance(note, dict) else enumerate(note) if isinstance(note, list) else ()
    for key, value in entries:
        yield (key,)
        yield from ((key, *rest) for rest in places(value))


@pytest.mark.parametrize(("size", "packing"), [(64, "int4"), (256, FLOATS)])
def test_tiles_with_larger_groups_are_what_they_stand_for(size: int, packing: str, tmp_path: Path) -> None:
    """Where the inputs are no whole groups, as padded ones are, floats are."""
    made = torchao._tiles(torch.randn(11, 320, generator=torch.Generator().manual_seed(2)), size)
    tensors, floats, note = made
    save_file(
        {f"layers._weight_{role}": each.contiguous() for role, each in tensors.items()},
        tmp_path / "model.safetensors",
        {"layers.weight": json.dumps(note), "tensor_names": '["layers.weight"]'},
    )
    (tmp_path / "config.json").write_text("{}")
    found = read_all(tmp_path)["layers.weight"]
    assert (found.packing if isinstance(found, Rows) else FLOATS) == packing
    torch.testing.assert_close(found.floats() if isinstance(found, Rows) else found, floats, rtol=1e-6, atol=1e-6)


WITH_A_GPU = ("int4-pairs", *torchao.TILED)


@pytest.mark.parametrize("kind", [kind for kind in KEPT if kind not in WITH_A_GPU])  # which the library needs for them
def test_files_and_pictures_are_the_librarys(kind: str, z_image_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="it is not installed")
    from diffusers import TorchAoConfig, ZImageTransformer2DModel
    from torchao import quantization as library

    groups = {"granularity": library.PerGroup(32)}
    how = {
        "int8": library.Int8WeightOnlyConfig,
        "int8-dynamic": library.Int8DynamicActivationInt8WeightConfig,
        "fp8": library.Float8WeightOnlyConfig,
        "int4": partial(library.IntxWeightOnlyConfig, weight_dtype=torch.int4, **groups),
        "int8-groups": partial(library.Int8WeightOnlyConfig, **groups),
    }[kind]
    folder = Path(shutil.copytree(z_image_folder, tmp_path / "small"))
    torchao.pack(folder / "transformer", kind)
    module = ZImageTransformer2DModel.from_pretrained(
        z_image_folder / "transformer", quantization_config=TorchAoConfig(how()), torch_dtype=torch.float32
    )
    module.save_pretrained(tmp_path / "library")
    opened = [next(each.glob("*.safetensors")) for each in (folder / "transformer", tmp_path / "library")]
    with safe_open(opened[0], "pt") as ours, safe_open(opened[1], "pt") as theirs:
        notes, said = ours.metadata(), theirs.metadata()
        for name in [name for name in notes if "layers." in name]:
            assert json.loads(notes[name]) == json.loads(said[name])
        for name in [name for name in ours.keys() if "layers." in name]:  # noqa: SIM118
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
    if kind == "int8-dynamic":  # the least difference rounds some input otherwise, and from there on all are others
        return
    shutil.copy(tmp_path / "library" / "config.json", folder / "transformer")
    [expected] = Z_IMAGE.reference(folder, Z_IMAGE.wishes[:1], "latent")
    found, _ = first_drawn(folder)
    assert Z_IMAGE.far(found[0], expected) <= Z_IMAGE.tolerance


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "fp8"])
def test_what_is_packed_here_are_the_librarys_numbers_to_the_bit(kind: str) -> None:
    """Of float32; those of bfloat16 it rounds once more on the way."""
    pytest.importorskip("torchao", reason="it is not installed")
    from torchao import quantization as library

    how = {
        "int8": library.Int8WeightOnlyConfig,
        "int8-dynamic": library.Int8DynamicActivationInt8WeightConfig,
        "fp8": library.Float8WeightOnlyConfig,
    }[kind]
    draw = torch.Generator().manual_seed(5)
    linear = torch.nn.Linear(96, 48, bias=False)
    linear.weight = torch.nn.Parameter(torch.randn(48, 96, generator=draw), requires_grad=False)
    x, scheme = torch.randn(7, 96, generator=draw), SCHEMES[kind]
    parts = scheme.pack(linear.weight)
    library.quantize_(linear, how())
    assert torch.equal(parts["weight"], linear.weight.qdata.view(parts["weight"].dtype))
    assert torch.equal(parts["weight_scale"], linear.weight.scale)
    found, expected = scheme.multiply(x, parts, torch.nn.functional.linear), linear(x)
    rounding = 1e-6 if kind == "fp8" else 0  # whose weights it multiplies with their scales first
    assert (found - expected).norm() <= rounding * expected.norm()
