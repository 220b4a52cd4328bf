"""Every family for which diffusers loads adapters: what ours draws with them is what that library draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
from safetensors.torch import save_file
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.loras import Lora
from tests.checkpoints.adapters import (
    Layers,
    Style,
    kohya,
    layers_of,
    peft,
    products,
    worn_by_the_reference,
    write,
)
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family, Wish

Tiny = Callable[[str], Path]
TOLERANCE = 1e-5
WITH_ADAPTERS = [family for family in FAMILIES if hasattr(getattr(diffusers, family.arch), "load_lora_weights")]

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = [
    pytest.mark.crossed,
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module", params=WITH_ADAPTERS, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tiny: Tiny) -> Path:
    return tiny(family.name)


def ours(folder: Path, wishes: list[Wish], adapters: Mapping[Path, float]) -> list[Tensor]:
    loras = [Lora(str(file), scale) for file, scale in adapters.items()]
    params = [replace(wish.params, output_type="latent", loras=loras) for wish in wishes]
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    with Omni(str(folder), config=config) as omni:
        return [result.output[0] for result in omni.generate([w.asked for w in wishes], params, progress=False)]


def theirs(
    family: Family, folder: Path, changed: Path, wishes: list[Wish], adapters: Mapping[Path, float]
) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        return family.reference(worn_by_the_reference(folder, changed, adapters), wishes, "latent")


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


ORIGINAL = {
    "double_blocks.0.img_attn.qkv": (96, 32),
    "double_blocks.1.txt_attn.qkv": (96, 32),
    "double_blocks.0.txt_attn.proj": (32, 32),
    "double_blocks.1.img_mlp.0": (128, 32),
    "single_blocks.0.linear2": (32, 160),
    "single_blocks.1.modulation.lin": (96, 32),
}
"""Layers of the tiny FLUX, by the names of the first code: outputs and inputs."""
XLABS = {
    "double_blocks.0.processor.qkv_lora1": (96, 32),
    "double_blocks.1.processor.qkv_lora2": (96, 32),
    "double_blocks.0.processor.proj_lora2": (32, 32),
    "single_blocks.1.processor.qkv_lora": (96, 32),
    "single_blocks.0.processor.proj_lora": (32, 160),
}


def xlabs(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    return {f"{name}.down.weight": down, f"{name}.up.weight": up}


@pytest.mark.parametrize(("layers", "style"), [(ORIGINAL, kohya()), (XLABS, xlabs)], ids=["kohya", "xlabs"])
def test_the_names_of_other_trainers_mean_what_the_reference_takes_them_for(
    tmp_path: Path, tiny: Tiny, layers: Layers, style: Style
) -> None:
    family = next(family for family in WITH_ADAPTERS if family.name == "FluxPipeline-dev")
    folder = tiny(family.name)
    adapters, wishes = {write(tmp_path / "a.safetensors", layers, style): 1.3}, [family.wishes[0]]
    [expected] = theirs(family, folder, tmp_path / "changed", wishes, adapters)
    [found], [plain] = ours(folder, wishes, adapters), ours(folder, wishes, {})
    assert apart(found, expected) <= TOLERANCE
    assert apart(found, plain) > 1e-3


def test_a_whole_layer_of_four_is_what_its_parts_are(tmp_path: Path, tiny: Tiny) -> None:
    family = next(family for family in WITH_ADAPTERS if family.name == "FluxPipeline-dev")
    folder = tiny(family.name)
    whole = {"single_blocks.1.linear1": (224, 32)}
    [(down, up)] = products(whole).values()
    parts = zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), up.split([32, 32, 32, 128]), strict=True)
    apart_ones = {f"single_transformer_blocks.1.{name}": (down, part) for name, part in parts}
    tensors: dict[str, Tensor] = {}
    for name, (low, high) in apart_ones.items():
        tensors |= peft()(name, low, high)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "parts.safetensors")
    one = write(tmp_path / "whole.safetensors", whole, peft("diffusion_model."))
    [expected] = ours(folder, [family.wishes[0]], {tmp_path / "parts.safetensors": 1.0})
    [found] = ours(folder, [family.wishes[0]], {one: 1.0})
    assert apart(found, expected) <= TOLERANCE


@pytest.mark.parametrize("name", ["FluxPipeline-dev", "StableDiffusion3Pipeline-3"])
def test_an_adapter_for_a_text_encoder_is_what_the_reference_makes_of_it(tmp_path: Path, tiny: Tiny, name: str) -> None:
    family = next(family for family in WITH_ADAPTERS if family.name == name)
    folder = tiny(family.name)
    layers = {layer: size for layer, size in layers_of(folder, "text_encoder").items() if "self_attn" in layer}
    adapters, wishes = {write(tmp_path / "a.safetensors", layers, peft("text_encoder.")): 0.9}, [family.wishes[0]]
    [expected] = theirs(family, folder, tmp_path / "changed", wishes, adapters)
    [found], [plain] = ours(folder, wishes, adapters), ours(folder, wishes, {})
    assert apart(found, expected) <= TOLERANCE
    assert apart(found, plain) > 1e-4


def test_two_adapters_at_their_scales_are_what_the_reference_makes_of_them(
    family: Family, folder: Path, tmp_path: Path
) -> None:
    layers = layers_of(folder)
    one = write(tmp_path / "one.safetensors", layers, seed=1)
    two = write(tmp_path / "two.safetensors", layers, seed=2, rank=2)
    adapters, wishes = {one: 0.7, two: -0.4}, [family.wishes[0], family.wishes[1]]
    plain, found = ours(folder, wishes, {}), ours(folder, wishes, adapters)
    for expected, mine, before in zip(
        theirs(family, folder, tmp_path / "changed", wishes, adapters), found, plain, strict=True
    ):
        assert apart(mine, expected) <= TOLERANCE
        assert apart(mine, before) > 1e-3, "they are strong enough to be noticed"
