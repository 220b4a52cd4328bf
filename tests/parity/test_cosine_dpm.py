"""The stochastic solver and its Brownian motion against diffusers and torchsde: the same noise, the same way."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from diffusers import CosineDPMSolverMultistepScheduler
from torch import Tensor
from torchsde import BrownianInterval

from omnimuse.diffusion.brownian import Brownian
from omnimuse.diffusion.choice import COSINE_DPM, solver_for
from omnimuse.diffusion.cosine_dpm import CosineDpm
from omnimuse.diffusion.solvers import SolverMemory
from omnimuse.diffusion.wrapped import DiffusersSolver
from tests.distance import distance

SHAPE = (1, 4, 24)
SEEDS = (0, 7, 2**40 + 3)


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))


def velocity(sample: Tensor, timestep: float) -> Tensor:
    return torch.sin(3 * sample) * 0.5 + 0.2 * sample * timestep


def theirs(config: dict[str, Any], steps: int, seed: int) -> list[Tensor]:
    scheduler = CosineDPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(steps)
    generator, sample, way = torch.Generator().manual_seed(seed), noise() * scheduler.init_noise_sigma, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of levels at the very end of the motion
        for t in scheduler.timesteps:
            prediction = velocity(scheduler.scale_model_input(sample, t), float(t))
            sample = scheduler.step(prediction, t, sample, generator=generator).prev_sample
            way.append(sample)
    return way


def ours(config: dict[str, Any], steps: int, seed: int, pause: int = -1) -> list[Tensor]:
    solver, _ = solver_for(COSINE_DPM, config)
    schedule, generator, way = solver.plan(steps, 0), torch.Generator().manual_seed(seed), []
    memory: SolverMemory = solver.start(schedule)
    sample = solver.scale_noise_start(memory, noise())
    for index, t in enumerate(schedule.timesteps):
        if index == pause:
            memory.to("cpu")
        prediction = velocity(solver.scale_input(memory, index, schedule, sample), t)
        sample = solver.step(memory, index, schedule, sample, prediction, generator)
        way.append(sample)
    return way


@pytest.mark.crossed
@pytest.mark.parametrize(
    "config",
    [{}, {"solver_type": "heun"}, {"solver_order": 1}, {"sigma_min": 0.1, "sigma_max": 80.0, "sigma_data": 0.5}],
)
@pytest.mark.parametrize("steps", [1, 2, 3, 14, 40])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_step_is_the_references(config: dict[str, Any], steps: int, seed: int) -> None:
    solver, why = solver_for(COSINE_DPM, config)
    assert isinstance(solver, CosineDpm), why
    scheduler = CosineDPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(steps)
    schedule = solver.plan(steps, 0)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    assert schedule.sigmas == tuple(scheduler.sigmas.tolist())
    found, expected = ours(config, steps, seed), theirs(config, steps, seed)
    assert len(found) == len(expected) == steps
    for mine, their in zip(found, expected, strict=True):
        assert distance(mine, their) < 3e-6


def test_another_seed_or_order_would_be_noticed() -> None:
    plain = ours({}, 14, 7)[-1]
    assert distance(ours({}, 14, 8)[-1], plain) > 1e-2
    assert distance(ours({"solver_order": 1}, 14, 7)[-1], plain) > 1e-3
    assert distance(ours({"solver_type": "heun"}, 14, 7)[-1], plain) > 1e-4


@pytest.mark.parametrize(
    "config", [{"sigma_schedule": "karras"}, {"prediction_type": "epsilon"}, {"final_sigmas_type": "sigma_min"}]
)
def test_what_it_does_not_cover_is_diffusers_own(config: dict[str, Any]) -> None:
    solver, why = solver_for(COSINE_DPM, config)
    assert isinstance(solver, DiffusersSolver)
    assert next(iter(config)) in why


@pytest.mark.parametrize("seed", SEEDS)
def test_the_motion_is_torchsdes_whatever_is_asked_first(seed: int) -> None:
    times = [0.3, 0.3000007, 0.41, 1.5, 77.25, 250.15, 250.150001, 499.0, 500.0]
    expected = BrownianInterval(
        0.3, 500.0, SHAPE, torch.float32, "cpu", seed, tol=1e-6, pool_size=24, halfway_tree=True
    )
    spans = [(a, b) for a in times for b in times if b - a > 1e-6]
    forward, backward = Brownian(seed, 0.3, 500.0, SHAPE), Brownian(seed, 0.3, 500.0, SHAPE)
    for found, order in ((forward, spans), (backward, spans[::-1])):
        for earlier, later in order:
            want = expected(earlier, later) / (later - earlier) ** 0.5
            assert torch.allclose(found.between(earlier, later), want, atol=2e-5), (earlier, later)


def test_gains_are_of_unit_variance_and_do_not_know_of_each_other() -> None:
    motion = Brownian(3, 0.3, 500.0, (200_000,))
    low, high = motion.between(0.5, 2.0), motion.between(2.0, 300.0)
    for gain in (low, high):
        assert gain.mean().abs() < 0.01
        assert (gain.std() - 1).abs() < 0.01
    assert (low * high).mean().abs() < 0.01


def test_a_motion_looked_at_again_is_the_same_and_takes_little_memory() -> None:
    motion = Brownian(3, 0.3, 500.0, (16,))
    first = [motion.between(a, a + 1) for a in range(1, 60)]
    assert all(torch.equal(motion.between(a, a + 1), one) for a, one in zip(range(1, 60), first, strict=True))
    assert len(motion._way) <= 31
