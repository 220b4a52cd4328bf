"""What a pipeline says of weights that may wait, and of its parts; what it is told of the offload that was chosen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from omnimuse.compat.contract.offloaded import planned
from omnimuse.compat.vllm_omni.diffusion.models.interface import SupportsComponentDiscovery
from omnimuse.compat.vllm_omni.diffusion.offloader import OffloadPlan, get_offload_plan
from omnimuse.compat.vllm_omni.diffusion.offloader.config import (
    DIT_COMPONENT,
    TEXT_ENCODER_COMPONENT,
    OffloadStrategy,
    resolve_offload,
    resolve_offload_strategy,
    selected_offload_components,
    should_offload_component,
)
from omnimuse.compat.vllm_omni.diffusion.offloader.module_collector import ModuleDiscovery
from omnimuse.core.config import OffloadConfig
from omnimuse.core.errors import ConfigError
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.compat.running import config, drawn, running

WISH = next(each for each in FAMILIES if each.kind == "3").wishes[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("offload") / "tiny", kind="3")


def there(part: nn.Module) -> int:
    """How many of its weights are there."""
    return sum(not each.is_meta for each in part.parameters())


def test_what_a_plan_names_waits_and_draws_the_same(folder: Path) -> None:
    with running(config(folder, "DocumentedPipeline")) as engine:
        [plain] = drawn(engine, [WISH])
    with running(config(folder, "PlannedPipeline", offload=OffloadConfig("layers"))) as engine:
        pipe = engine.runner.pipeline.ctx.components["pipeline"].pipe
        layers = pipe.text_encoder.text_model.encoder.layers
        seen: list[tuple[int, ...]] = []
        layers[0].block.register_forward_hook(lambda *args: seen.append(tuple(map(there, layers))))
        pipe.text_encoder_2.register_forward_hook(lambda *args: seen.append((there(pipe.text_encoder),)))
        [found] = drawn(engine, [WISH])
        waiting = (*pipe.transformer.transformer_blocks, *layers, pipe.text_encoder)
        assert {there(part) for part in waiting} == {0}
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    assert seen[0][0] > 0 == sum(seen[0][1:])  # one block at a time
    assert (0,) in seen  # and one encoder
    plan = get_offload_plan(pipe)
    assert plan is not None
    assert list(plan.encoder_block_attrs) == ["text_encoder", "text_encoder_3"]
    assert get_offload_plan(nn.Linear(1, 1)) is None


class Parts(nn.Module):
    """A pipeline with parts under their usual names, which says nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.vae = nn.Linear(1, 1), nn.Linear(1, 1)
        self.transformer.refiner = nn.Module()
        self.transformer.refiner.blocks = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        self.text_encoder = self.mllm = nn.Linear(1, 1)
        self.image_encoder: Any = None


class Declared(Parts, SupportsComponentDiscovery):
    """One that says what they are."""

    _dit_modules = ("transformer.refiner",)
    _encoder_modules = ("text_encoder", "image_encoder")
    _vae_modules = ()
    _resident_modules = ("vae",)


def test_parts_are_found_as_declared_or_by_their_usual_names(caplog: pytest.LogCaptureFixture) -> None:
    usual = ModuleDiscovery.discover(Parts())
    assert (usual.dit_names, usual.encoder_names, usual.vae_names) == (["transformer"], ["text_encoder"], ["vae"])
    assert not caplog.records
    pipe = Declared()
    with caplog.at_level(logging.WARNING):
        said = ModuleDiscovery.discover(pipe)
    assert said.dits == [pipe.transformer.refiner]
    assert (said.encoder_names, said.vaes, said.resident_modules) == (["text_encoder"], [], [pipe.vae])
    assert [record.getMessage() for record in caplog.records] == [
        "Declared says that image_encoder is a part of it, and it is none"
    ]


def test_a_plan_names_lists_of_blocks_and_what_it_names_must_be_one() -> None:
    pipe = Parts()
    for plan in (
        OffloadPlan(offload_submodules={"refiner": "blocks"}),
        OffloadPlan(block_attrs={"transformer.refiner": ("blocks",), "transformer_2": ("blocks",)}),
    ):
        pipe._offload_plan = plan
        assert list(planned(pipe)) == ["transformer.refiner.blocks"]
    pipe._offload_plan = OffloadPlan(encoder_block_attrs={"text_encoder": ("layers",)})
    with pytest.raises(ConfigError, match=r"names text_encoder.layers, which is no list of blocks; correct it"):
        planned(pipe)


@pytest.mark.parametrize(
    ("chosen", "strategy"),
    [
        ("none", OffloadStrategy.NONE),
        ("layers", OffloadStrategy.LAYER_WISE),
        ("components", OffloadStrategy.MODEL_LEVEL),
    ],
)
def test_a_pipeline_is_told_which_offload_was_chosen(folder: Path, chosen: Any, strategy: str) -> None:
    with running(config(folder, "DocumentedPipeline", offload=OffloadConfig(chosen))) as engine:
        told = engine.runner.pipeline.ctx.components["pipeline"].pipe.od_config
    assert resolve_offload_strategy(told) is OffloadStrategy(strategy)
    assert (resolve_offload(told).public, selected_offload_components(told)) == (None, {DIT_COMPONENT})
    assert should_offload_component(told, DIT_COMPONENT) == (chosen == "layers")
    assert not should_offload_component(told, TEXT_ENCODER_COMPONENT)
