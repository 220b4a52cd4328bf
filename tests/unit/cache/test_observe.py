"""What is noted of a stack while it runs, and that fits find what numbers were made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.observe import Observer, Seen, polynomial, ratios
from omnimuse.layers.stack import Memory, PlainRunner
from tests.toy_stack import ToyCond, toy_rows, toy_stack


def test_an_observer_changes_nothing_counts_blocks_and_notes_changes_between_steps() -> None:
    stack, plain, layout = toy_stack(), toy_stack(), Layout((3, 5))
    stack.runner = observer = Observer(PlainRunner(), 3)
    parts, shift = toy_rows((3, 5))
    memories, inputs, added = [Memory(steps=2), Memory(steps=2)], [], []
    for step in range(2):
        for memory in memories:
            memory.step = step
        hidden = layout.pack([part * (1 + step) for part in parts])
        out = stack(hidden, ToyCond(layout, shift), memories)
        assert torch.equal(out, plain(hidden, ToyCond(layout, shift)))
        inputs.append(layout.unpack(plain.blocks()[0].probe(hidden, ToyCond(layout, shift))))
        added.append(layout.unpack(out - hidden))
    assert observer.work == 2 * 2 * 3 and len(observer.seen) == 2
    for row, seen in enumerate(observer.seen):
        expected = [
            float((new - old).abs().mean() / old.abs().mean())
            for old, new in ((x[0][row], x[1][row]) for x in (inputs, added))
        ]
        growth = float((added[1][row].norm(dim=-1) / added[0][row].norm(dim=-1)).mean())
        assert (seen.row, seen.step, seen.steps) == (row, 1, 2)
        assert (seen.probe, seen.added, seen.growth) == pytest.approx((*expected, growth), rel=1e-5)


@pytest.mark.parametrize(("blocks", "memories"), [(1, [Memory()]), (3, None)])
def test_a_run_of_some_blocks_or_that_nothing_is_remembered_of_is_counted_and_not_noted(
    blocks: int, memories: list[Memory] | None
) -> None:
    stack, ((part,), shift) = toy_stack(), toy_rows((4,))
    observer = Observer(PlainRunner(), 3)
    for _ in range(2):
        observer(stack.blocks()[:blocks], part[None], ToyCond(Layout((4,)), shift), memories)
    assert (observer.work, observer.seen) == (2 * blocks, [])


def made(curve: list[float], noise: float = 0.0, rows: int = 5) -> list[Seen]:
    """Rows of steps whose outputs follow a polynomial of their inputs."""
    chance = np.random.default_rng(0)
    found = []
    for row in range(rows):
        for step in range(1, 20):
            probe = chance.uniform(0.05, 0.5)
            found.append(Seen(row, step, 20, probe, float(np.polyval(curve, probe)) + noise * chance.normal(), 1.0))
    return found


@pytest.mark.parametrize("curve", [[2.0, 0.1], [3.0, -1.0, 0.3], [498.7, -283.8, 55.9, -3.8, 0.26]])
def test_the_polynomial_that_numbers_follow_is_found(curve: list[float]) -> None:
    found = polynomial(made(curve))
    for change in (0.05, 0.2, 0.5):
        assert np.polyval(found, change) == pytest.approx(np.polyval(curve, change), rel=1e-4)


def test_noise_is_not_fitted_with_a_curve() -> None:
    assert len(polynomial(made([2.0, 0.1], noise=0.2, rows=3))) == 2


def test_no_degree_is_taken_that_there_were_too_few_points_to_try() -> None:
    """However much the one errs that could be tried."""
    points = [(0, 0.1, 0.1), (0, 0.2, 9.0), (1, 0.3, 9.0), (1, 0.4, 0.1)]
    assert len(polynomial([Seen(row, 1, 3, probe, added, 1.0) for row, probe, added in points])) == 2


def test_a_polynomial_that_falls_below_zero_beyond_what_was_seen_is_not_taken() -> None:
    hill = [-3.0, 1.8, 0.1]  # it fits exactly, and from 0.65 on a change would count for nothing
    found = polynomial(made(hill))
    assert min(np.polyval(found, change) for change in np.linspace(0.025, 1.0, 40)) >= 0
    assert len(found) != len(hill)


def test_what_grows_as_inputs_change_less_is_taken_to_change_by_its_mean() -> None:
    seen = made([-1.0, 0.52])
    assert polynomial(seen) == pytest.approx((np.mean([each.added for each in seen]),))


def test_one_row_is_enough_for_a_fit_of_the_lowest_degree() -> None:
    assert polynomial(made([2.0, 0.1], rows=1)) == pytest.approx((2.0, 0.1))
    assert len(polynomial(made([2.0, 0.1], rows=1)[:1])) == 1


def test_ratios_are_means_by_step_and_those_of_fewer_steps_count_where_they_lie() -> None:
    seen = [Seen(0, 1, 5, 0, 0, 1.2), Seen(1, 1, 5, 0, 0, 1.4), Seen(0, 2, 5, 0, 0, 1.1), Seen(2, 1, 3, 0, 0, 1.3)]
    assert ratios(seen) == pytest.approx((1.0, 1.3, 1.2, 1.0, 1.0))
