"""The solver contract: who is chosen and why, memories that belong to one state, refusals in words."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.diffusion.choice import solver_for
from omnimuse.diffusion.schedules import Schedule
from omnimuse.diffusion.solvers import FlowEuler, Solver, SolverMemory, flow_euler
from omnimuse.diffusion.unipc import FlowUniPC
from omnimuse.diffusion.wrapped import DiffusersSolver

# diffusers hands torch tensors to numpy in a way that numpy 2 wants spelled differently.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FLOW_UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SOLVERS = {
    "flow euler": FlowEuler(),
    "unipc": FlowUniPC.over(DiffusersSolver("UniPCMultistepScheduler", FLOW_UNIPC, "scheduler")),
    "wrapped unipc": DiffusersSolver("UniPCMultistepScheduler", FLOW_UNIPC),
    "heun": DiffusersSolver("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
}


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> Solver:
    return SOLVERS[request.param]


def noise(seed: int) -> Tensor:
    return torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def velocity(sample: Tensor, timestep: float) -> Tensor:
    """A toy field that bends, so that every step and the order of the solver matter."""
    return torch.sin(3 * sample) + sample * (timestep / 1000) ** 2


def advance(solver: Solver, memory: SolverMemory, schedule: Schedule, sample: Tensor, index: int) -> Tensor:
    seen = solver.scale_input(memory, index, schedule, sample)
    prediction = velocity(seen, schedule.timesteps[index])
    return solver.step(memory, index, schedule, sample, prediction, None)


def run(solver: Solver, seed: int, steps: int) -> Tensor:
    schedule = solver.plan(steps, 64)
    memory = solver.start(schedule)
    sample = solver.scale_noise_start(memory, noise(seed))
    for index in range(len(schedule)):
        sample = advance(solver, memory, schedule, sample, index)
    return sample


def test_interleaved_states_do_not_disturb_one_another(solver: Solver) -> None:
    plans = [solver.plan(steps, 64) for steps in (4, 6)]
    memories = [solver.start(plan) for plan in plans]
    samples = [noise(1), noise(2)]
    for index in range(max(len(plan) for plan in plans)):
        for i in (0, 1):
            if index < len(plans[i]):
                samples[i] = advance(solver, memories[i], plans[i], samples[i], index)
    assert torch.equal(samples[0], run(solver, 1, 4))
    assert torch.equal(samples[1], run(solver, 2, 6))


def test_a_state_that_is_copied_moved_and_resumed_ends_where_it_would_have(solver: Solver) -> None:
    schedule = solver.plan(6, 64)
    memory = solver.start(schedule)
    sample = noise(1)
    for index in range(len(schedule)):
        if index == 3:
            memory = copy.deepcopy(memory)
            memory.to("cpu")
        sample = advance(solver, memory, schedule, sample, index)
    assert torch.equal(sample, run(solver, 1, 6))


def test_moving_a_memory_moves_what_was_gathered_and_leaves_the_tables() -> None:
    solver = SOLVERS["wrapped unipc"]
    schedule = solver.plan(4, 64)
    memory = solver.start(schedule)
    advance(solver, memory, schedule, noise(1), 0)
    memory.to("meta")
    assert memory.scheduler.model_outputs[-1].device.type == "meta"
    assert memory.scheduler.last_sample.device.type == "meta"
    assert memory.scheduler.sigmas.device.type == "cpu"


def test_planning_again_gives_the_same_plan(solver: Solver) -> None:
    assert solver.plan(5, 64) == solver.plan(5, 64)


def test_a_second_order_solver_evaluates_more_often_than_there_are_steps() -> None:
    assert len(SOLVERS["heun"].plan(5, 64)) == 9


def test_a_step_out_of_order_is_noticed() -> None:
    solver = SOLVERS["unipc"]
    schedule = solver.plan(4, 64)
    with pytest.raises(AssertionError, match="evaluation 2 was asked for, 0 is next"):
        advance(solver, solver.start(schedule), schedule, noise(1), 2)


def test_the_clean_estimate_of_a_straight_flow_is_exact_at_any_step(solver: Solver) -> None:
    clean, start = noise(1), noise(2)
    schedule = solver.plan(4, 64)
    sigma = schedule.sigmas[2]
    estimate = solver.denoised(2, schedule, (1 - sigma) * clean + sigma * start, start - clean)
    assert estimate is not None
    assert torch.allclose(estimate, clean, atol=1e-6)


def test_solvers_of_other_predictions_do_not_pretend_to_know_the_clean_sample() -> None:
    solver = DiffusersSolver("EulerDiscreteScheduler", {})
    schedule = solver.plan(4, 64)
    assert solver.denoised(0, schedule, noise(1), noise(2)) is None


def test_an_euler_step_takes_the_dtype_of_the_velocity() -> None:
    assert flow_euler(noise(1), noise(2).bfloat16(), 1.0, 0.5).dtype == torch.bfloat16
    assert flow_euler(noise(1).bfloat16(), noise(2), 1.0, 0.5).dtype == torch.float32


def test_our_own_solver_is_chosen_where_it_covers_the_config() -> None:
    solver, reason = solver_for("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    assert isinstance(solver, FlowEuler)
    assert solver.levels.shift == 3.0
    assert "our flow Euler" in reason


def test_an_option_we_do_not_cover_goes_to_diffusers_and_is_named() -> None:
    solver, reason = solver_for("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True})
    assert isinstance(solver, DiffusersSolver)
    assert "does not cover stochastic_sampling=True" in reason


def test_another_class_goes_to_diffusers() -> None:
    solver, reason = solver_for("DDIMScheduler", {"clip_sample": False})
    assert isinstance(solver, DiffusersSolver)
    assert reason == "diffusers' DDIMScheduler, which the checkpoint names"


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("UniPCMultistepSheduler", {}, "does not have; near: UniPCMultistepScheduler"),
        ("CogVideoXDPMScheduler", {}, "does not step like a solver"),
        ("UniPCMultistepScheduler", {"solver_type": "magic"}, "refuses its config"),
    ],
)
def test_a_scheduler_that_cannot_be_used_is_refused(name: str, config: dict[str, str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        solver_for(name, config)


def test_starting_late_lies_on_the_line_between_picture_and_noise_and_goes_on_from_there(solver: Solver) -> None:
    schedule = solver.plan(5, 64)
    memory = solver.start(schedule)
    sample, first = solver.start_late(memory, 2, schedule, noise(1), noise(2))
    sigma = schedule.sigmas[first]
    assert torch.allclose(sample, sigma * noise(2) + (1 - sigma) * noise(1), atol=1e-6)
    for index in range(first, len(schedule)):
        sample = advance(solver, memory, schedule, sample, index)
    assert bool(torch.isfinite(sample).all())
