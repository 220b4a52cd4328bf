"""TeaCache skips by row, never at the edges, and changes nothing when it is off."""

import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.teacache import TeaCache
from omnimuse.core.errors import ConfigError
from omnimuse.layers.stack import Memory
from tests.toy_stack import ToyCond, toy_rows, toy_stack

STEPS = 5


def walk(stack, lengths, speeds, memories, steps=range(STEPS), every=STEPS):
    """Each row's outputs as its input moves by `speed` a step; a row's step is `memory.step`."""
    parts, shift = toy_rows(lengths)
    layout = Layout(tuple(lengths))
    outputs = []
    for step in steps:
        for memory in memories:
            memory.step, memory.steps = step, every
        hidden = layout.pack([part * (1 + speed * step) for part, speed in zip(parts, speeds, strict=True)])
        outputs.append([x.clone() for x in layout.unpack(stack(hidden, ToyCond(layout, shift), memories))])
    return outputs


def cached(threshold, **options):
    stack = toy_stack()
    stack.runner = TeaCache(threshold, **options)
    return stack


def same(left, right, tolerance=0.0):
    pairs = [(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.allclose(a, b, atol=tolerance, rtol=0) for a, b in pairs)


@pytest.mark.parametrize("lengths", [(4,), (4, 4), (3, 6)])
def test_threshold_zero_equals_off_bit_for_bit(lengths):
    off = walk(toy_stack(), lengths, [0.0] * len(lengths), [Memory() for _ in lengths])
    zero = walk(cached(0.0, coefficients=(1.0, -5.0)), lengths, [0.0] * len(lengths), [Memory() for _ in lengths])
    assert same(off, zero)


def test_the_first_and_the_last_step_always_run():
    memory = Memory()
    walk(cached(1e9), (4,), [0.5], [memory])
    counts = memory.data["teacache"]
    assert (counts.computed, counts.skipped) == (2, STEPS - 2)


def test_an_unchanged_row_skips_and_its_output_stays_exact():
    stack, memory = cached(0.1), Memory()
    outputs = walk(stack, (4,), [0.0], [memory])
    assert memory.data["teacache"].skipped == STEPS - 2
    assert [block.rows_run for block in stack] == [2, 2, 2]
    assert same(outputs, walk(toy_stack(), (4,), [0.0], [Memory()]), tolerance=1e-6)


@pytest.mark.parametrize("lengths", [(4, 4, 4), (3, 6, 3)])
def test_rows_that_decide_differently_share_a_batch_as_if_each_were_alone(lengths):
    speeds = [0.0, 2.0, 0.02]
    stack, memories = cached(0.1), [Memory() for _ in lengths]
    together = walk(stack, lengths, speeds, memories)
    counts = [memory.data["teacache"].computed for memory in memories]
    assert counts[0] == 2
    assert counts[1] == STEPS
    assert stack[0].rows_run == sum(counts)
    parts, shift = toy_rows(lengths)
    for row, (part, speed, memory) in enumerate(zip(parts, speeds, memories, strict=True)):
        alone, own, layout = cached(0.1), Memory(steps=STEPS), Layout((len(part),))
        for step in range(STEPS):
            own.step = step
            hidden = layout.pack([part * (1 + speed * step)])
            output = alone(hidden, ToyCond(layout, shift[row : row + 1]), [own])[0]
            assert torch.allclose(output, together[step][row], atol=1e-6)
        assert own.data["teacache"].computed == memory.data["teacache"].computed


def test_drift_adds_up_over_skipped_steps_until_it_passes_the_threshold():
    memory = Memory()
    walk(cached(0.25, coefficients=(0.1,)), (4,), [0.0], [memory], steps=range(9), every=10)
    counts = memory.data["teacache"]
    assert (counts.computed, counts.skipped) == (3, 6)  # runs at 0, 3 and 6: each skip adds 0.1


def test_a_failed_step_can_be_tried_again_with_the_same_decision():
    stack, memory = cached(0.25, coefficients=(0.3,)), Memory()
    walk(stack, (4,), [0.1], [memory], steps=[0])
    stack[1].broken = True
    with pytest.raises(ArithmeticError):
        walk(stack, (4,), [0.1], [memory], steps=[1])
    stack[1].broken = False
    walk(stack, (4,), [0.1], [memory], steps=[1])
    assert (memory.data["teacache"].computed, memory.data["teacache"].skipped) == (2, 0)


def test_the_last_step_lets_go_of_the_tensors_and_keeps_the_counts():
    memory = Memory()
    walk(cached(1e9), (4,), [0.0], [memory])
    counts = memory.data["teacache"]
    assert counts.probe is None
    assert counts.residual is None
    assert counts.computed == 2


def test_a_row_whose_size_changed_runs():
    stack, memory = cached(1e9), Memory()
    walk(stack, (4,), [0.0], [memory], steps=[0])
    walk(stack, (6,), [0.0], [memory], steps=[1])
    assert memory.data["teacache"].skipped == 0


def test_moving_the_memory_away_and_back_changes_nothing():
    here, moved = Memory(), Memory()
    expected = walk(cached(0.1), (4,), [0.01], [here])
    stack = cached(0.1)
    first = walk(stack, (4,), [0.01], [moved], steps=range(2))
    moved.to(torch.device("cpu"))
    assert same(first + walk(stack, (4,), [0.01], [moved], steps=range(2, STEPS)), expected)


def test_without_memories_every_block_runs():
    stack = cached(1e9)
    (part,), shift = toy_rows((4,))
    for _ in range(3):
        stack(part[None], ToyCond(Layout((4,)), shift))
    assert stack[0].rows_run == 3


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_from_zero_up_is_refused(threshold):
    with pytest.raises(ConfigError, match="teacache threshold"):
        TeaCache(threshold)


@pytest.mark.parametrize("coefficients", [(), (1.0, float("nan"))])
def test_coefficients_that_are_no_polynomial_are_refused(coefficients):
    with pytest.raises(ConfigError, match="teacache coefficients"):
        TeaCache(0.1, coefficients)
