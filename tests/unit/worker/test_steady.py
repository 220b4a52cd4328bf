"""Which tier a build chooses, and what it says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from omnimuse.attention.backends.one_by_one import OneByOne
from omnimuse.attention.layer import Attention
from omnimuse.core.config import Choice, CompileConfig, Config, HostConfig, ModelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError
from omnimuse.layers.network import Network
from omnimuse.layers.steady import SteadyActivation, SteadyLinear
from omnimuse.worker import steady
from omnimuse.worker.build import build
from omnimuse.worker.explain import explain
from omnimuse.worker.steady import _unsteady, obstacle

CPU = torch.device("cpu")


def config(folder: Path, tier: str = "auto") -> Config:
    schedule = ScheduleConfig(tier=tier)  # type: ignore[arg-type]
    return Config(ModelConfig(str(folder), dtype="float32", device="cpu"), schedule=schedule)


def tier_of(choices: list[Choice] | tuple[Choice, ...]) -> Choice:
    [choice] = [choice for choice in choices if choice.name == "tier"]
    return choice


def test_explain_says_the_tier_that_a_build_chooses(z_image_folder: Path) -> None:
    for tier in ("auto", "fast", "exact"):
        built = build(config(z_image_folder, tier))
        assert tier_of(built.choices) == tier_of(explain(config(z_image_folder, tier)))
        built.resources.close()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_on_a_cpu_networks_are_invariant_by_default(z_image_folder: Path, threads: int) -> None:
    built = build(replace(config(z_image_folder), host=HostConfig(threads=threads)))
    assert tier_of(built.choices).value == "invariant"
    [network] = [part for part in built.pipeline.ctx.components.values() if isinstance(part, Network)]
    parts = [module for module in network.modules() if not isinstance(module, SteadyActivation)]
    assert any(isinstance(part, SteadyLinear) for part in parts)
    assert not any(isinstance(part, nn.Linear) for part in parts)
    assert all(isinstance(part.backend, OneByOne) for part in parts if isinstance(part, Attention))
    built.resources.close()


def test_products_are_tried_once_in_a_process_with_each_number_of_threads(
    z_image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = Mock(wraps=steady.trial_weights)
    monkeypatch.setattr(steady, "trial_weights", tries)
    steady.tried.cache_clear()
    found = []
    for threads in (1, 1, 2):
        built = build(replace(config(z_image_folder), host=HostConfig(threads=threads)))
        found.append((tries.call_count, tier_of(built.choices)))
        built.resources.close()
    (first, chosen), (second, again), (third, _) = found
    assert (second, again) == (first, chosen)
    assert third == 2 * first > 0


def test_what_stands_in_the_way_is_said() -> None:
    plain = Config(ModelConfig("x"))
    assert "cuda has not been measured" in str(obstacle(plain, torch.device("cuda")))
    assert "compiled" in str(obstacle(replace(plain, compile=CompileConfig("blocks")), CPU))
    key = (6, 4, True, torch.float32)
    assert "6x4 in torch.float32 round by where a row lies" in str(_unsteady({key: ()}, None))
    assert "only in tiles of 512 rows" in str(_unsteady({key: (512,)}, 32))
    assert _unsteady({key: (512,)}, None) is None
    assert _unsteady({key: (512, 8)}, 32) is None


def test_an_unknown_tier_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="tier='precise' is not allowed; use one of auto, fast, invariant, exact"):
        ScheduleConfig(tier="precise")  # type: ignore[arg-type]
