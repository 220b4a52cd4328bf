"""Every family for which diffusers loads adapters: what ours draws with them is what that library draws."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.loras import Lora
from tests.checkpoints.adapters import layers_of, worn_by_the_reference, write
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family, Wish

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
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.build(tmp_path_factory.mktemp("lora") / "tiny")


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
