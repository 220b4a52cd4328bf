"""Folders in 8 bits with scales beside the weights: they draw and write what their weights stand for."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnimuse import Omni
from omnimuse.api import explain
from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import Config, ModelConfig, ParallelConfig, QuantConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.foreign import FLOATS
from omnimuse.loader.headers import stored_in
from omnimuse.quant.linear import quantized_layers
from omnimuse.quant.packings import PACKINGS, Rows
from omnimuse.quant.schemes import held
from omnimuse.worker.pack import pack_checkpoint
from omnimuse.worker.room import held as held_bytes
from tests.checkpoints import bagel, bitsandbytes, eight_bits, qwen3
from tests.checkpoints.eight_bits import LAYOUTS
from tests.invariants.conftest import Subject, run
from tests.unit.worker.test_bitsandbytes import Z_IMAGE, draws_as_floats, first_drawn, read_all
from tests.unit.worker.test_pack import floats as floats_of

KEPT = {
    "blocks": "fp8-128",
    "blocks of 64": "mxfp8",
    "blocks of 24": FLOATS,
    "powers": "fp8-128",
    "one scale": "fp8",
    "one scale, rounding": "fp8-dynamic",
    "modelopt": "fp8",
    "modelopt, rows": "fp8-dynamic",
    "modelopt, groups": "mxfp8",
    "compressed": "fp8",
    "compressed, rows": "fp8-dynamic",
    "compressed, rows alone": "fp8",
    "compressed, blocks": "fp8-128",
    "compressed, groups": "mxfp8",
    "compressed, whole numbers": "int8-dynamic",
    "compressed, whole numbers alone": "int8",
}
"""As what each layout is kept here."""
ROUNDING = [kind for kind, packing in KEPT.items() if packing.endswith("dynamic")]
OFTEN = ("blocks", "modelopt", "compressed, rows alone")
"""One of each library; the others take turns."""
PLAIN = [
    pytest.param(kind, marks=() if kind in OFTEN else pytest.mark.crossed) for kind in KEPT if kind not in ROUNDING
]


def packed_file(folder: Path, kind: str, outputs: int = 200, inputs: int = 192) -> torch.Tensor:
    """Makes `folder` a component of one packed layer, `layers.weight`; the floats that it stands for."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))
    save_file({"layers.weight": weight, "layers.bias": torch.zeros(outputs)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return eight_bits.pack(folder, kind)["layers.weight"]


@pytest.mark.parametrize("kind", KEPT)
def test_what_a_file_has_is_kept_in_8_bits_and_stands_for_the_same_to_the_bit(kind: str, tmp_path: Path) -> None:
    floats = packed_file(tmp_path, kind)
    found = read_all(tmp_path)["layers.weight"]
    assert (found.packing if isinstance(found, Rows) else FLOATS) == KEPT[kind]
    assert torch.equal(found.floats() if isinstance(found, Rows) else found, floats)
    if isinstance(found, Rows):
        codes = load_file(tmp_path / "model.safetensors")["layers.weight"]
        assert torch.equal(found.parts["weight"].view(codes.dtype), codes)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_folder_draws_what_diffusers_draws_of_the_weights_it_stands_for(
    kind: str, z_image_folder: Path, tmp_path: Path
) -> None:
    draws_as_floats(partial(eight_bits.pack, kind=kind), KEPT[kind], z_image_folder, tmp_path)
    [expected] = Z_IMAGE.reference(tmp_path / "floats", Z_IMAGE.wishes[:1], "latent")
    found, _ = first_drawn(tmp_path / "small")
    assert Z_IMAGE.far(found[0], expected) <= Z_IMAGE.tolerance


@pytest.mark.parametrize("kind", PLAIN)
def test_a_language_model_writes_what_transformers_writes_of_the_weights_it_stands_for(
    kind: str, tmp_path: Path
) -> None:
    """Its inputs are one block and a half."""
    small = qwen3.build(tmp_path / "small", width=192, head=48)
    floats = Path(shutil.copytree(small, tmp_path / "floats"))
    bitsandbytes.unpack(floats, eight_bits.pack(small, kind))
    with Omni(str(small), device="cpu", dtype="float32") as omni:
        [result] = omni.generate("a red circle", max_tokens=12, temperature=0, progress=False)
    expected = qwen3.generated(floats, "a red circle", 0, {"max_tokens": 12, "temperature": 0})
    assert list(result.written[0].tokens) == expected
    [told] = [each for each in explain(str(small)) if (each.topic, each.name) == ("quantize", "model")]
    assert told.value == ("as floats" if KEPT[kind] == FLOATS else f"12 x {KEPT[kind]}")


@pytest.mark.parametrize("kind", ROUNDING)
def test_where_a_folder_says_so_inputs_are_rounded_each_token_by_itself(
    kind: str, z_image_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(z_image_folder, tmp_path / "small"))
    eight_bits.pack(folder / "transformer", kind)
    _, layers = first_drawn(folder)
    assert layers and {each.packing for each in layers.values()} == {PACKINGS[KEPT[kind]]}


@pytest.mark.parametrize("kind", KEPT)
def test_scales_that_are_missing_or_of_another_shape_or_format_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    packed_file(tmp_path, kind)
    file, scale = tmp_path / "model.safetensors", f"layers.{LAYOUTS[kind].scale}"
    tensors = load_file(file)
    whole, rest = tensors[scale], {name: each for name, each in tensors.items() if name != scale}
    shorter = torch.cat((torch.atleast_1d(whole), torch.atleast_1d(whole)))
    other = "weight_scale" if scale.endswith("_inv") else "weight_scale_inv"
    for damaged, says in (
        (rest, rf"layers.weight has no scale, layers\.weight_scale or .*_inv, and what {said(kind)} packed has one"),
        (tensors | {f"layers.{other}": whole.clone()}, "layers.weight has two scales"),
        (tensors | {scale: shorter}, rf"{scale} is \[.*\] of .* for weights of \[200, 192\], and what"),
        (tensors | {scale: whole.float().to(torch.int64)}, rf"{scale} is .* of I64 for"),
        (
            tensors | {"layers.weight": torch.zeros(200, 192)},
            rf"{scale} is a scale of layers.weight, which is not in 8",
        ),
        ({name: each for name, each in tensors.items() if name != "layers.weight"}, f"{scale} is a scale of"),
    ):
        save_file(damaged, file)
        with pytest.raises(ModelError, match=f"model.safetensors: {says}"):
            stored_in(tmp_path)


def said(kind: str) -> str:
    """Who packs so."""
    method: str = LAYOUTS[kind].said["quant_method"]
    return method


def test_codes_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    folder = qwen3.build(tmp_path / "model")
    eight_bits.pack(folder, "blocks")
    tensors = load_file(folder / "model.safetensors")
    [name, *_] = [name for name, each in tensors.items() if each.dtype == torch.float8_e4m3fn]
    tensors[name].view(torch.uint8)[3, 5] = 0x7F
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"numbers of {name} are NaN or infinite"), Omni(str(folder)):
        pass


def test_scales_of_keys_and_values_are_left_out_as_these_are_remembered_in_floats(tmp_path: Path) -> None:
    folder = qwen3.build(tmp_path / "model")
    eight_bits.pack(folder, "modelopt")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.{layer}.self_attn.{key}_scale": torch.ones(()) for layer in range(3) for key in "kv"}
    save_file(tensors, folder / "model.safetensors")
    with Omni(str(folder), device="cpu") as omni:
        [result] = omni.generate("a red circle", max_tokens=2, progress=False)
    assert result.written[0].tokens


def test_zeros_that_are_none_are_read_and_others_refused_by_name(tmp_path: Path) -> None:
    floats = packed_file(tmp_path, "compressed, whole numbers alone")
    tensors = load_file(tmp_path / "model.safetensors")
    zero = torch.zeros(200, 1, dtype=torch.int8)
    save_file(tensors | {"layers.weight_zero_point": zero}, tmp_path / "model.safetensors")
    found = read_all(tmp_path)["layers.weight"]
    assert isinstance(found, Rows) and torch.equal(found.floats(), floats)
    save_file(tensors | {"layers.weight_zero_point": zero + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers.weight_zero_point has numbers other than 0"):
        read_all(tmp_path)


def test_scales_may_be_in_another_file_of_the_component(tmp_path: Path) -> None:
    floats = packed_file(tmp_path, "blocks")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    owners = {name: f"model-0000{1 + ('scale' in name)}-of-00002.safetensors" for name in tensors}
    for file in set(owners.values()):
        save_file({name: each for name, each in tensors.items() if owners[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": owners}))
    assert torch.equal(weights_in(tmp_path, "layers.weight"), floats)


def weights_in(folder: Path, name: str) -> torch.Tensor:
    """What is stored under a name, in floats."""
    from omnimuse.loader.headers import opened
    from omnimuse.loader.sources import Source

    stored = stored_in(folder)[name]
    with opened(stored.path) as handle:
        content = Source(handle, name, stored).whole()
        return content.floats() if isinstance(content, Rows) else content


Change = Callable[[dict[str, Any]], object]
NOT_READ: dict[str, tuple[str, Change, str]] = {
    "another format": ("blocks", lambda said: said.update(fmt="e5m2"), "fp8 with fmt='e5m2'"),
    "four bits": ("blocks", lambda said: said.update(expert_dtype="fp4"), "fp8 with expert_dtype='fp4'"),
    "no blocks": ("blocks", lambda said: said.update(weight_block_size=7), "fp8 in a way that its quantization_config"),
    "nvfp4": ("modelopt", lambda said: said.update(quant_algo="NVFP4"), "modelopt as NVFP4"),
    "mixed": ("modelopt", lambda said: said.update(quant_algo="MIXED_PRECISION"), "modelopt as MIXED_PRECISION"),
    "of diffusers": (
        "modelopt",
        lambda said: said.update(quant_algo=None, quant_type="FP8"),
        "modelopt as diffusers' FP8",
    ),
    "packed": ("compressed", lambda said: said.update(format="pack-quantized"), "compressed-tensors as pack-quantized"),
    "bits": (
        "compressed",
        lambda said: said["config_groups"]["group_0"]["weights"].update(num_bits=4),
        "compressed-tensors as float-quantized in 4 bits",
    ),
    "around another zero": (
        "compressed",
        lambda said: said["config_groups"]["group_0"]["weights"].update(symmetric=False),
        "compressed-tensors around another zero",
    ),
    "turned": (
        "compressed",
        lambda said: said.update(transform_config={"config_groups": {"u": {}}}),
        "compressed-tensors with a transform_config",
    ),
    "not yet packed": (
        "compressed",
        lambda said: said.update(quantization_status="frozen"),
        "compressed-tensors with quantization_status='frozen'",
    ),
    "several ways": (
        "compressed",
        lambda said: said["config_groups"].update(group_1={"weights": {"num_bits": 8, **eight_bits.GROUP}}),
        "compressed-tensors in 2 ways at once",
    ),
    "no groups": ("compressed", lambda said: said.pop("config_groups"), "compressed-tensors in a way that its"),
    "a name": ("compressed", lambda said: said.update(config_groups={"FP8": ["Linear"]}), "in a way that its"),
}


@pytest.mark.parametrize("change", NOT_READ)
def test_what_is_not_read_of_a_layout_is_refused_by_name_with_what_to_do(
    change: str, z_image_folder: Path, tmp_path: Path
) -> None:
    kind, edit, says = NOT_READ[change]
    folder = Path(shutil.copytree(z_image_folder, tmp_path / "small"))
    about = folder / "transformer" / "config.json"
    config = json.loads(about.read_text()) | {"quantization_config": json.loads(json.dumps(dict(LAYOUTS[kind].said)))}
    edit(config["quantization_config"])
    about.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"'transformer' of .* packed by .*{says}.*--quantize transformer=int4"):
        start(Subject(Z_IMAGE, folder).config())


@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
def test_what_modelopt_says_in_a_file_beside_the_configuration_counts(algorithm: str, tmp_path: Path) -> None:
    folder = qwen3.build(tmp_path / "model")
    eight_bits.pack(folder, "modelopt", beside=True)
    note = folder / "hf_quant_config.json"
    note.write_text(note.read_text().replace('"FP8"', f'"{algorithm}"'))
    if algorithm == "FP8":
        [told] = [each for each in explain(str(folder)) if each.topic == "quantize"]
        assert told.value == "12 x fp8"
        return
    with pytest.raises(ModelError, match=r"'model' of .* packed by modelopt as NVFP4"):
        explain(str(folder))


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_what_is_said_in_one_of_several_configurations_of_a_network_counts(method: str, tmp_path: Path) -> None:
    folder = bagel.build(tmp_path / "model")
    eight_bits.pack(Checkpoint(folder).weights("model"), "blocks")
    about, part = folder / "config.json", folder / "llm_config.json"
    whole = json.loads(about.read_text())
    said = {**whole.pop("quantization_config"), "quant_method": method}
    about.write_text(json.dumps(whole))
    part.write_text(json.dumps({**json.loads(part.read_text()), "quantization_config": said}))
    if method == "fp8":
        told = [each.value for each in explain(str(folder)) if each.topic == "quantize"]
        assert any("fp8" in value for value in told)
        return
    with pytest.raises(ModelError, match=r"'model' of .* packed by gptq.*--quantize model=int4"):
        explain(str(folder))


@pytest.mark.parametrize("kind", KEPT)
def test_ranks_have_their_parts_of_the_numbers_that_one_has(kind: str, tmp_path: Path) -> None:
    """Of blocks that are cut within, too, inputs and outputs of them."""
    folder, ranks = qwen3.build(tmp_path / "model", width=192, head=48), ParallelConfig(tensor=2)
    eight_bits.pack(folder, kind)
    chosen = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    whole, _ = floats_of(chosen, 0)
    for rank in range(ranks.ranks):
        found, cuts = floats_of(replace(chosen, parallel=ranks), rank)
        assert found.keys() <= whole.keys()
        assert (found.keys() == whole.keys()) == (KEPT[kind] != "mxfp8"), (
            "groups that others are added to become floats"
        )
        assert all(torch.equal(each, held(whole[path], cuts[f"{path}.weight"])) for path, each in found.items())


def test_another_component_is_packed_beside_one_in_8_bits_and_itself_it_is_not(
    z_image_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(z_image_folder, tmp_path / "model"))
    eight_bits.pack(folder / "text_encoder", "blocks")
    chosen = Config(ModelConfig(str(folder), device="cpu"), quantize=QuantConfig({"transformer": "int8"}))
    pack_checkpoint(chosen, tmp_path / "small")
    drawn = []
    for made, quantize in ((tmp_path / "small", QuantConfig()), (folder, chosen.quantize)):
        with contextlib.closing(start(Subject(Z_IMAGE, made).config(quantize=quantize))) as engine:
            drawn.append(run(engine, Subject(Z_IMAGE, made).ask(0))[0])
    assert torch.equal(*drawn)
    kinds = {each.kind for each in stored_in(tmp_path / "small" / "text_encoder").values()}
    assert "fp8-128" in kinds
    again = replace(chosen, quantize=QuantConfig({"text_encoder": "int8"}))
    with pytest.raises(
        ConfigError, match=r"quantize text_encoder=int8 cannot be: its files are packed already \(.*fp8"
    ):
        pack_checkpoint(again, tmp_path / "smaller")


def test_what_weights_take_is_foretold_and_a_quarter_of_floats(tmp_path: Path) -> None:
    folder = qwen3.build(tmp_path / "model", width=192, head=48)
    eight_bits.pack(folder, "blocks")
    [told] = [each for each in explain(str(folder), dtype="float32") if each.name == "all weights"]
    with contextlib.closing(start(Config(ModelConfig(str(folder), dtype="float32", device="cpu")))) as engine:
        module = engine.runner.pipeline.ctx.network("model")
        assert told.value == told_bytes(held_bytes(module))
        layers = quantized_layers(module).values()
    taken = sum(part.nbytes for each in layers for part in each.packed.values())
    assert taken < 0.27 * sum(each.like().nbytes for each in layers)
