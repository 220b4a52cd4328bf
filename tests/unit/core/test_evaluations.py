"""How many evaluations the door counts, against the plans of every scheduler there is."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers import schedulers

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ModelError
from omnimuse.core.evaluations import TWICE, evaluations_beyond
from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.params import DiffusionParams, ScheduleParams
from omnimuse.core.request import Ask, Door
from omnimuse.diffusion.wrapped import DiffusersSolver
from omnimuse.worker.find import find

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
)

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "DPMSolverSDEScheduler": [{"noise_sampler_seed": 0}],
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
}
OTHERS = {
    *("ConsistencyDecoderScheduler", "HeliosDMDScheduler", "HeliosScheduler", "MiniMaxH3Scheduler", "RePaintScheduler"),
    *("SCMScheduler", "UnCLIPScheduler"),
}
"""Made for one pipeline of diffusers each, which plans with more than a number of steps."""
SOLVERS = sorted(name for name in dir(schedulers) if name.endswith("Scheduler") and name not in OTHERS)


@pytest.mark.crossed
@pytest.mark.parametrize("name", SOLVERS)
def test_as_many_evaluations_are_counted_as_the_scheduler_plans(name: str) -> None:
    for config in CONFIGS.get(name, [{}]):
        try:
            solver = DiffusersSolver(name, config)
            solver.plan(4, 64)
        except ModelError as problem:
            pytest.skip(str(problem))
        for steps, skipped in ((4, 0), (10, 0), (25, 0), (25, 7)):
            left = len(solver.plan(steps, 64)) - skipped * getattr(schedulers, name).order
            told = evaluations_beyond({"_class_name": name, **config}, ScheduleParams(), steps - skipped)
            assert steps - skipped + told == left, (config, steps, skipped)


def test_every_scheduler_that_counts_twice_is_one_of_diffusers() -> None:
    assert set(SOLVERS) >= TWICE


@pytest.fixture(scope="module")
def door() -> Door:
    return find(Config(ModelConfig("omnimuse/shapes"))).door


@pytest.mark.parametrize("name", [None, *SCHEDULERS])
def test_a_request_counts_by_the_scheduler_that_it_chooses(door: Door, name: str | None) -> None:
    made = door.make_request(Ask("a star", DiffusionParams(num_inference_steps=9, scheduler=name)), 0.0, 1)
    assert (made.steps, made.evaluations) == (9, 17 if name == "heun" else 9)


def test_a_request_counts_by_the_scheduler_of_its_checkpoint_unless_it_chooses_one(door: Door) -> None:
    heun = Door(door.spec, door.limits, door.defaults, scheduler={"_class_name": "FlowMatchHeunDiscreteScheduler"})
    for name, expected in ((None, 17), ("euler", 9), ("FlowMatchHeunDiscreteScheduler", 17)):
        made = heun.make_request(Ask("a star", DiffusionParams(num_inference_steps=9, scheduler=name)), 0.0, 1)
        assert made.evaluations == expected
