"""Properties of the schedule functions; equality with diffusers is in tests/parity/test_solvers.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.diffusion.schedules import (
    FlowSchedule,
    linear_mu,
    linear_sigmas,
    shift_dynamic,
    shift_static,
    stretch_terminal,
    unsupported,
)

STEPS = st.integers(1, 100)
SHIFTS = st.floats(0.2, 12)
MUS = st.floats(-2, 3)


@given(STEPS)
def test_linear_sigmas_fall_from_1_to_one_over_steps(steps: int) -> None:
    sigmas = linear_sigmas(steps)
    assert sigmas.dtype == np.float32
    assert len(sigmas) == steps
    assert sigmas[0] == 1
    assert sigmas[-1] == np.float32(1 / steps)
    assert np.all(np.diff(sigmas) < 0)


@given(STEPS)
def test_a_shift_of_one_changes_nothing(steps: int) -> None:
    sigmas = linear_sigmas(steps)
    assert np.array_equal(shift_static(sigmas, 1.0), sigmas)
    assert np.allclose(shift_dynamic(sigmas, 0.0), sigmas, atol=1e-6)


@given(STEPS, SHIFTS)
def test_static_and_dynamic_shifts_are_one_move_written_twice(steps: int, shift: float) -> None:
    sigmas = linear_sigmas(steps)
    static = shift_static(sigmas, shift)
    assert np.allclose(static, shift_dynamic(sigmas, math.log(shift)), atol=1e-5)
    assert np.allclose(static, shift_dynamic(sigmas, shift, "linear"), atol=1e-5)


@given(STEPS, MUS)
def test_a_shift_keeps_the_order_and_the_first_level(steps: int, mu: float) -> None:
    shifted = shift_dynamic(linear_sigmas(steps), mu)
    assert shifted.dtype == np.float32
    assert shifted[0] == 1
    assert np.all(np.diff(shifted) < 0)
    assert shifted[-1] > 0


@given(st.integers(2, 100), st.floats(0.005, 0.5))
def test_a_terminal_stretch_moves_only_the_end(steps: int, terminal: float) -> None:
    stretched = stretch_terminal(linear_sigmas(steps), terminal)
    assert stretched[0] == 1
    assert stretched[-1] == pytest.approx(terminal, abs=1e-6)
    assert np.all(np.diff(stretched) < 0)


@given(st.integers(1, 100_000))
def test_mu_is_a_line_through_two_points(tokens: int) -> None:
    assert linear_mu(256, 256, 4096, 0.5, 1.15) == pytest.approx(0.5)
    assert linear_mu(4096, 256, 4096, 0.5, 1.15) == pytest.approx(1.15)
    more = linear_mu(tokens + 1, 256, 4096, 0.5, 1.15)
    assert more - linear_mu(tokens, 256, 4096, 0.5, 1.15) == pytest.approx(0.65 / 3840)


@given(STEPS, st.integers(1, 20_000), st.booleans(), SHIFTS)
def test_a_plan_falls_from_1_to_0(steps: int, tokens: int, dynamic: bool, shift: float) -> None:
    plan = FlowSchedule(shift=shift, dynamic=dynamic).plan(steps, tokens)
    assert len(plan) == steps
    assert plan.sigmas[0] == pytest.approx(1, abs=1e-6)
    assert plan.sigmas[-1] == 0
    assert all(a > b for a, b in zip(plan.sigmas, plan.sigmas[1:], strict=False))
    assert np.allclose(plan.timesteps, np.array(plan.sigmas[:-1]) * 1000, rtol=1e-6)


def test_given_levels_replace_the_linear_ones() -> None:
    plan = FlowSchedule(shift=3.0).plan(3, 64, sigmas=[1.0, 0.5, 0.25])
    assert plan.sigmas == (1.0, 0.75, 0.5, 0.0)


@pytest.mark.parametrize("sigmas", [[], [0.5, 0.7], [1.0, 0.0], [1.5, 0.5], [1.0], [1.0, float("nan")]])
def test_levels_that_do_not_fall_from_1_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(RequestError, match="give 2 falling numbers"):
        FlowSchedule().plan(2, 64, sigmas=sigmas)


def test_no_steps_at_all_are_refused() -> None:
    with pytest.raises(RequestError, match=r"num_inference_steps=0 .* at least 1"):
        FlowSchedule().plan(0, 64)


def test_a_single_step_is_refused_where_the_terminal_shift_would_divide_by_zero() -> None:
    with pytest.raises(RequestError, match=r"num_inference_steps=1 .* at least 2"):
        FlowSchedule(terminal=0.02).plan(1, 64)


def test_a_config_is_read_with_its_nulls_and_gaps() -> None:
    config = {"_class_name": "X", "shift": 3, "base_shift": None, "use_dynamic_shifting": True, "shift_terminal": None}
    assert FlowSchedule.from_config(config) == FlowSchedule(shift=3, dynamic=True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"shift": "3"}, "shift='3' is not a number"),
        ({"shift": True}, "shift=True is not a number"),
        ({"time_shift_type": "cubic"}, "time_shift_type='cubic'"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "two different lengths"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        FlowSchedule.from_config(config)


def test_options_that_are_not_covered_are_named() -> None:
    assert unsupported({"_diffusers_version": "0.42", "shift": 3.0, "use_karras_sigmas": False}) is None
    assert unsupported({"shift": 3.0, "stochastic_sampling": True}) == "stochastic_sampling=True"
    assert unsupported({"wobble": 2}) == "wobble=2 (unknown)"
