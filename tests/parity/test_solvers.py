"""Schedules and trajectories against diffusers, called by hand as its pipelines call it: equal bit for bit."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import schedulers
from diffusers.pipelines.bria.pipeline_bria import get_original_sigmas
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift as root_shift
from diffusers.pipelines.z_image.pipeline_z_image import calculate_shift, get_default_z_image_sigmas
from torch import Tensor

from omnimuse.core.flow import SCHEDULERS
from omnimuse.core.params import ScheduleParams
from omnimuse.diffusion.choice import chosen_config, solver_for
from omnimuse.diffusion.schedules import FlowSchedule, root_mu
from omnimuse.diffusion.solvers import FlowEuler
from omnimuse.diffusion.unipc import FlowUniPC
from omnimuse.diffusion.wrapped import DiffusersSolver

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
)

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
PUBLISHED = {  # scheduler configs as the families' checkpoints have them
    "plain": {},
    "static": {"shift": 3.0},
    "static 6": {"shift": 6.0, "num_train_timesteps": 1000},
    "dynamic": {"use_dynamic_shifting": True, "shift": 3.0},
    "dynamic terminal": {
        "use_dynamic_shifting": True,
        "max_image_seq_len": 8192,
        "max_shift": 0.9,
        "shift_terminal": 0.02,
    },
    "static terminal": {"shift": 3.0, "shift_terminal": 0.1},
    "dynamic linear": {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25},
    "other range": {"num_train_timesteps": 900, "shift": 2.5},
}


def velocity(sample: Tensor, timestep: float) -> Tensor:
    return torch.sin(3 * sample) + sample * (timestep / 1000) ** 2


def noise(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(11)).to(dtype)


def theirs(class_name: str, config: dict[str, Any], steps: int, tokens: int, levels: Any) -> Any:
    """A diffusers scheduler that has been set up the way a pipeline does it; `levels` may be those it hands over."""
    scheduler = getattr(schedulers, class_name).from_config(config)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    shifts = [scheduler.config.get(name, default) for name, default in zip(names, (256, 4096, 0.5, 1.15), strict=True)]
    mu = {"mu": calculate_shift(tokens, *shifts)} if scheduler.config.get("use_dynamic_shifting") else {}
    if levels is not False:
        given = get_default_z_image_sigmas(steps) if levels is True else levels
        scheduler.set_timesteps(sigmas=given, **mu)
    else:
        scheduler.set_timesteps(steps, **mu)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def their_run(scheduler: Any, dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
    sample, trajectory = noise(dtype), []
    if hasattr(scheduler, "init_noise_sigma"):
        sample = sample * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
        prediction = velocity(seen, float(t)).to(dtype)
        sample = scheduler.step(prediction, t, sample, return_dict=False, **options)[0]
        trajectory.append(sample)
    return trajectory


def our_run(
    solver: FlowEuler | DiffusersSolver, steps: int, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    schedule, trajectory = solver.plan(steps, tokens), []
    memory, generator = solver.start(schedule), torch.Generator().manual_seed(seed)
    sample = solver.scale_noise_start(memory, noise(dtype))
    for index, t in enumerate(schedule.timesteps):
        prediction = velocity(solver.scale_input(memory, index, schedule, sample), t).to(dtype)
        sample = solver.step(memory, index, schedule, sample, prediction, generator)
        trajectory.append(sample)
    return trajectory


def assert_equal_runs(ours: list[Tensor], others: list[Tensor]) -> None:
    assert len(ours) == len(others)
    assert all(mine.dtype == their.dtype for mine, their in zip(ours, others, strict=True))
    assert all(torch.equal(mine, their) for mine, their in zip(ours, others, strict=True))
    assert bool(torch.isfinite(ours[-1]).all())


@pytest.mark.parametrize("name", PUBLISHED)
def test_our_schedule_is_diffusers_schedule_bit_for_bit(name: str) -> None:
    config = PUBLISHED[name]
    first = 2 if "shift_terminal" in config else 1
    for steps, tokens in itertools.product((first, 2, 3, 4, 7, 8, 9, 20, 28, 50), (64, 256, 1024, 4096, 9000)):
        expected = theirs(FLOW_EULER, config, steps, tokens, levels=True)
        plan = FlowSchedule.from_config(config).plan(steps, tokens)
        assert plan.sigmas == tuple(expected.sigmas.tolist()), (steps, tokens)
        assert plan.timesteps == tuple(expected.timesteps.tolist()), (steps, tokens)


@pytest.mark.parametrize("name", PUBLISHED)
def test_levels_spaced_in_float64_are_those_of_pipelines_that_use_numpy(name: str) -> None:
    config, differ = PUBLISHED[name], 0
    ours, _ = solver_for(FLOW_EULER, config, "linear64")
    wrapped, _ = solver_for(FLOW_EULER, {**config, "stochastic_sampling": True}, "linear64")
    assert isinstance(ours, FlowEuler)
    assert isinstance(wrapped, DiffusersSolver)
    for steps in range(2, 60):
        expected = theirs(FLOW_EULER, config, steps, 1024, levels=np.linspace(1.0, 1 / steps, steps))
        for solver in (ours, wrapped):
            plan = solver.plan(steps, 1024)
            assert plan.sigmas == tuple(expected.sigmas.tolist()), steps
            assert plan.timesteps == tuple(expected.timesteps.tolist()), steps
        differ += plan.sigmas != FlowSchedule.from_config(config).plan(steps, 1024).sigmas
    assert differ > 20, "float32 spacing would be noticed"


@pytest.mark.parametrize("name", PUBLISHED)
def test_levels_of_training_are_picked_where_no_shift_follows_the_size(name: str) -> None:
    config = PUBLISHED[name]
    ours, _ = solver_for(FLOW_EULER, config, "trained")
    wrapped, _ = solver_for(FLOW_EULER, {**config, "stochastic_sampling": True}, "trained")
    assert isinstance(ours, FlowEuler) and isinstance(wrapped, DiffusersSolver)
    for steps in range(2, 60):
        follows = config.get("use_dynamic_shifting")
        trained = get_original_sigmas(config.get("num_train_timesteps", 1000), steps)
        levels = np.linspace(1.0, 1 / steps, steps) if follows else trained
        expected = theirs(FLOW_EULER, config, steps, 1024, levels=levels)
        for solver in (ours, wrapped):
            assert solver.plan(steps, 1024).sigmas == tuple(expected.sigmas.tolist()), steps


def test_levels_down_to_the_last_whole_one_and_a_shift_by_the_root_of_the_tokens_are_the_references() -> None:
    config = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.3, "max_shift": 0.7}
    ours = FlowEuler(FlowSchedule.from_config(config, root_mu), "whole_last")
    for steps in range(1, 60):
        whole = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)  # as its pipeline has it
        scheduler = schedulers.FlowMatchEulerDiscreteScheduler(**config)
        shift = root_shift(36 * steps, 256, 0.3, 0.7)
        scheduler.set_timesteps(steps, timesteps=whole, sigmas=whole / 1000, mu=shift)
        plan = ours.plan(steps, 36 * steps)
        assert plan.sigmas == tuple(scheduler.sigmas.tolist()), steps
        assert plan.timesteps == tuple(scheduler.timesteps.tolist()), steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_levels_that_the_scheduler_chooses_are_its_own(name: str) -> None:
    config = PUBLISHED[name]
    ours, _ = solver_for(FLOW_EULER, config, "scheduler")
    assert isinstance(ours, FlowEuler)
    for steps in range(2, 60):
        expected = theirs(FLOW_EULER, config, steps, 1024, levels=False)
        plan = ours.plan(steps, 1024)
        assert plan.sigmas == tuple(expected.sigmas.tolist()), steps
        assert plan.timesteps == tuple(expected.timesteps.tolist()), steps


@pytest.mark.parametrize("name", PUBLISHED)
def test_given_levels_are_shifted_as_diffusers_shifts_them(name: str) -> None:
    config, given = PUBLISHED[name], [1.0, 0.83, 0.61, 0.3, 0.07]
    expected = schedulers.FlowMatchEulerDiscreteScheduler.from_config(config)
    expected.set_timesteps(sigmas=given, mu=FlowSchedule.from_config(config).mu(777, len(given)))
    assert FlowSchedule.from_config(config).plan(5, 777, given).sigmas == tuple(expected.sigmas.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_flow_euler_follows_diffusers_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    solver, _ = solver_for(FLOW_EULER, PUBLISHED[name])
    assert isinstance(solver, FlowEuler)
    expected = their_run(theirs(FLOW_EULER, PUBLISHED[name], 9, 1024, levels=True), dtype)
    assert_equal_runs(our_run(solver, 9, 1024, dtype), expected)


@pytest.mark.parametrize("chosen", SCHEDULERS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_scheduler_that_is_chosen_is_told_nothing_that_it_warns_of(
    name: str, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = chosen_config({"_class_name": FLOW_EULER, **PUBLISHED[name]}, ScheduleParams(scheduler=chosen))
    library = logging.getLogger("diffusers")
    library.addHandler(caplog.handler)
    try:
        solver_for(config.pop("_class_name"), config)[0].plan(8, 1024)
    finally:
        library.removeHandler(caplog.handler)
    assert caplog.messages == []


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_a_linear_shift_is_kept_by_schedulers_that_know_the_exponential_one_alone(name: str) -> None:
    dynamic = {**FLOW, "use_dynamic_shifting": True}
    solver, _ = solver_for(name, {**dynamic, "time_shift_type": "linear"}, mu=lambda schedule, tokens, steps: 1.7)
    expected, _ = solver_for(name, dynamic, mu=lambda schedule, tokens, steps: math.log(1.7))
    assert solver.plan(8, 1024).sigmas == expected.plan(8, 1024).sigmas


WRAPPED = {
    "unipc flow": ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 3.0}, "scheduler"),
    "unipc dynamic": ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}, "scheduler"),
    "unipc": ("UniPCMultistepScheduler", {}, "linear"),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}, "linear"),
    "dpm++ 2m flow": ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0}, "linear"),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, "linear"),
    "euler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}, "linear"),
    "ddim": ("DDIMScheduler", {"clip_sample": False}, "linear"),
    "kdpm2": ("KDPM2DiscreteScheduler", {}, "linear"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_scheduler_runs_as_if_called_by_hand(name: str) -> None:
    class_name, config, spacing = WRAPPED[name]
    solver = DiffusersSolver(class_name, config, spacing)
    expected = theirs(class_name, config, 8, 1024, levels=False)
    plan = solver.plan(8, 1024)
    assert plan.timesteps == tuple(float(t) for t in expected.timesteps)
    if hasattr(expected, "sigmas"):
        assert plan.sigmas == tuple(float(s) for s in expected.sigmas[: len(plan) + 1])
    assert_equal_runs(our_run(solver, 8, 1024), their_run(expected))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrapped_flow_scheduler_gets_the_levels_that_its_pipeline_hands_over(name: str) -> None:
    config = {**PUBLISHED[name], "stochastic_sampling": True}
    solver, _ = solver_for(FLOW_EULER, config)
    assert isinstance(solver, DiffusersSolver)
    expected = theirs(FLOW_EULER, config, 9, 1024, levels=True)
    assert solver.plan(9, 1024).sigmas == tuple(expected.sigmas.tolist())
    generator = torch.Generator().manual_seed(4)
    assert_equal_runs(our_run(solver, 9, 1024, seed=4), their_run(expected, generator=generator))


def test_a_stochastic_scheduler_draws_from_the_generator_of_its_state() -> None:
    config = {"algorithm_type": "sde-dpmsolver++"}
    expected = theirs("DPMSolverMultistepScheduler", config, 8, 64, levels=False)
    wanted = their_run(expected, generator=torch.Generator().manual_seed(4))
    assert_equal_runs(our_run(DiffusersSolver("DPMSolverMultistepScheduler", config), 8, 64, seed=4), wanted)


UNIPC = {
    "published": {"flow_shift": 3.0},
    "large shift": {"flow_shift": 8.0},
    "first order": {"flow_shift": 3.0, "solver_order": 1},
    "some steps uncorrected": {"flow_shift": 5.0, "disable_corrector": [0, 3]},
    "dynamic": {"use_dynamic_shifting": True},
}


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("name", UNIPC)
def test_our_unipc_follows_diffusers(name: str, steps: int) -> None:
    config = {**FLOW, **UNIPC[name]}
    solver, _ = solver_for("UniPCMultistepScheduler", config, "scheduler")
    assert isinstance(solver, FlowUniPC)
    expected = their_run(theirs("UniPCMultistepScheduler", config, steps, 1024, levels=False))
    ours = our_run(solver, steps, 1024)
    assert len(ours) == len(expected) == steps
    for mine, their in zip(ours, expected, strict=True):
        assert float((mine - their).norm() / their.norm()) < 2e-6


def test_our_unipc_begins_in_the_middle_where_diffusers_does() -> None:
    config = {**FLOW, "flow_shift": 3.0}
    ours, _ = solver_for("UniPCMultistepScheduler", config, "scheduler")
    clean, results = noise() / 2, []
    for solver in (ours, DiffusersSolver("UniPCMultistepScheduler", config, "scheduler")):
        schedule = solver.plan(8, 1024)
        memory = solver.start(schedule)
        sample, first = solver.start_late(memory, 3, schedule, clean[0], noise()[0])
        assert first == 3
        for index in range(first, 8):
            moved = velocity(sample, schedule.timesteps[index])
            sample = solver.step(memory, index, schedule, sample, moved, None)
        results.append(sample)
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 2e-6


@pytest.mark.parametrize(
    "option", [{"solver_order": 3}, {"predict_x0": False}, {"use_flow_sigmas": False}, {"solver_type": "bh1"}]
)
def test_what_our_unipc_does_not_cover_is_wrapped(option: dict[str, Any]) -> None:
    solver, reason = solver_for("UniPCMultistepScheduler", {**FLOW, **option}, "scheduler")
    assert isinstance(solver, DiffusersSolver)
    assert next(iter(option)) in reason


OWN = {
    "euler": {"_class_name": FLOW_EULER, "shift": 3.0, "num_train_timesteps": 900},
    "unipc": {"_class_name": "UniPCMultistepScheduler", **FLOW, "flow_shift": 5.0},
    "dynamic": {"_class_name": FLOW_EULER, "shift": 3.0, "use_dynamic_shifting": True},
}


@pytest.mark.parametrize("shift", [None, 2.0])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("own", OWN)
def test_a_chosen_scheduler_is_one_that_is_built_by_hand_with_the_checkpoint_s_levels(
    own: str, name: str, shift: float | None
) -> None:
    config = chosen_config(OWN[own], ScheduleParams(scheduler=name, flow_shift=shift))
    solver, _ = solver_for(config["_class_name"], config, "scheduler")
    dynamic = own == "dynamic" and shift is None and name != "heun"
    kept = shift or OWN[own].get("shift") or OWN[own]["flow_shift"]
    by_hand = {"num_train_timesteps": OWN[own].get("num_train_timesteps", 1000), "use_dynamic_shifting": dynamic}
    by_hand |= {"shift": kept} if SCHEDULERS[name].startswith("FlowMatch") else {**FLOW, "flow_shift": kept}
    if name == "heun":
        del by_hand["use_dynamic_shifting"]
    expected = their_run(theirs(SCHEDULERS[name], by_hand, 6, 1024, levels=False))
    for mine, their in zip(our_run(solver, 6, 1024), expected, strict=True):
        assert float((mine - their).norm() / their.norm()) < 2e-6
