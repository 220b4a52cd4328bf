"""Step caches skip by row, each row by its own choice, and change nothing when they are off."""

import math
from dataclasses import replace

import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.policies import nearest
from omnimuse.cache.row import Series
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import CacheConfig, Fits, TeaFit, cache_named
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.layers.stack import Memory
from tests.toy_stack import ToyCond, toy_rows, toy_stack

STEPS = 8
RATIOS = (1.0, 1.2, 1.1, 1.05, 1.02, 1.01, 1.0, 0.97)
FITS = Fits(TeaFit((1.0, 0.0), 0.15), RATIOS)
KINDS = [
    "teacache",
    "dbcache,warm_up=1",
    "dbcache,warm_up=1,last=1,order=2",
    "magcache,warm_up=1",
    "taylorseer,warm_up=2",
]


def walk(stack, lengths, speeds, memories, steps=range(STEPS), every=STEPS):
    """Each row's outputs as its input moves by `speed` a step; a row's step is `memory.step`."""
    parts, shift = toy_rows(lengths)
    layout = Layout(tuple(lengths))
    outputs = []
    for step in steps:
        for memory in memories:
            memory.step, memory.steps = memory.at, memory.of = step, every
        hidden = layout.pack([part * (1 + speed * step) for part, speed in zip(parts, speeds, strict=True)])
        outputs.append([x.clone() for x in layout.unpack(stack(hidden, ToyCond(layout, shift), memories))])
    return outputs


def cached(choice="none", fits=FITS, blocks=3):
    stack = toy_stack(blocks)
    stack.runner = StepCache(cache_named(choice), fits)
    return stack


def counts(memory):
    row = memory.data["stepcache"]
    return row.computed, row.skipped


def skipped_steps(choice, speed=0.0, steps=STEPS, fits=FITS, blocks=3):
    """Which steps of one row skip its middle."""
    stack, memory, found = cached(choice, fits, blocks), Memory(), []
    for step in range(steps):
        before = memory.data["stepcache"].skipped if step else 0
        walk(stack, (4,), [speed], [memory], steps=[step], every=steps)
        found.append(memory.data["stepcache"].skipped > before)
    return [step for step, skipped in enumerate(found) if skipped]


def same(left, right, tolerance=0.0):
    pairs = [(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return all(torch.allclose(a, b, atol=tolerance, rtol=0) for a, b in pairs)


# -- what all share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(4,), (4, 4), (3, 6)])
def test_threshold_zero_equals_off_bit_for_bit(kind, lengths):
    off = walk(toy_stack(), lengths, [0.0] * len(lengths), [Memory() for _ in lengths])
    zero = walk(cached(f"{kind},threshold=0"), lengths, [0.0] * len(lengths), [Memory() for _ in lengths])
    assert same(off, zero)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unchanged_row_skips_and_its_output_stays_exact(kind):
    stack, memory = cached(f"{kind},threshold=9"), Memory()
    outputs = walk(stack, (4,), [0.0], [memory])
    computed, skipped = counts(memory)
    assert skipped > 2
    assert computed + skipped == STEPS
    assert stack[1].rows_run == computed
    assert same(outputs, walk(toy_stack(), (4,), [0.0], [Memory()]), tolerance=1e-5)


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4, 4, 4), (3, 6, 3, 6, 3, 6)])
def test_rows_of_all_kinds_share_a_batch_as_if_each_were_alone(lengths):
    speeds, choices = [0.0, 2.0, 0.02, 0.0, 0.05, 0.0], [*KINDS, "none"]
    stack, memories = cached(), [Memory(cache=choice) for choice in choices]
    together = walk(stack, lengths, speeds, memories)
    parts, shift = toy_rows(lengths)
    for number, choice in enumerate(choices):
        alone, own, layout = cached(choice), Memory(), Layout((lengths[number],))
        for step in range(STEPS):
            own.step, own.steps = own.at, own.of = step, STEPS
            hidden = layout.pack([parts[number] * (1 + speeds[number] * step)])
            output = alone(hidden, ToyCond(layout, shift[number : number + 1]), [own])[0]
            assert torch.allclose(output, together[step][number], atol=1e-5)
        if choice != "none":
            assert counts(own) == counts(memories[number])
    skipped = sum(counts(memory)[1] for memory in memories[:-1])
    assert skipped > 6
    assert stack[1].rows_run == len(lengths) * STEPS - skipped


@pytest.mark.parametrize(
    ("choices", "most"),
    [
        (["dbcache,warm_up=1"] * 6, 1),
        (["teacache"] * 6, 1),
        ([*KINDS, "none"], 2),  # before the first block and behind it
        (["magcache,warm_up=1", "dbcache,mask=fast,forced=true"], 0),
    ],
)
def test_the_host_waits_once_for_all_rows_that_look_at_one_place(choices, most, monkeypatch):
    waits = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *given, plain=plain: waits.append(1) or plain(*given))
    stack, memories = cached(), [Memory(cache=choice) for choice in choices]
    for step in range(STEPS):
        waits.clear()
        walk(stack, (4,) * len(choices), [0.02] * len(choices), memories, steps=[step])
        assert len(waits) <= most
    assert sum(counts(memory)[1] for memory in memories if memory.cache != "none") > 0


def test_rows_at_different_steps_decide_each_by_its_own():
    stack, early, late = cached("dbcache,warm_up=3,threshold=9"), Memory(), Memory()
    walk(stack, (4,), [0.0], [late], steps=range(3))
    parts, shift = toy_rows((4, 4))
    for memory, step in ((early, 0), (late, 3)):
        memory.step, memory.steps = memory.at, memory.of = step, STEPS
    stack(Layout((4, 4)).pack(parts), ToyCond(Layout((4, 4)), shift), [early, late])
    assert counts(early) == (1, 0)
    assert counts(late) == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_moving_the_memory_away_takes_all_of_it_and_back_changes_nothing(kind):
    here, moved = Memory(), Memory()
    expected = walk(cached(kind), (4,), [0.01], [here])
    stack = cached(kind)
    first = walk(stack, (4,), [0.01], [moved], steps=range(3))
    kept = moved.data["stepcache"]
    assert kept.nbytes == sum(each.nbytes for each in (kept.seen, *kept.added.terms) if each is not None) > 0
    moved.to(torch.device("meta"))
    away = moved.data["stepcache"]
    assert all(each.is_meta for each in (away.seen, *away.added.terms) if each is not None)
    moved.data["stepcache"] = kept
    assert same(first + walk(stack, (4,), [0.01], [moved], steps=range(3, STEPS)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_step_can_be_tried_again_with_the_same_decision(kind):
    stack, memory, spared = cached(kind), Memory(), Memory()
    expected = walk(cached(kind), (4,), [0.3], [spared])
    found = walk(stack, (4,), [0.3], [memory], steps=[0, 1])
    for step in range(2, STEPS):
        before = memory.data["stepcache"]
        stack[2].broken = True
        try:
            walk(stack, (4,), [0.3], [memory], steps=[step])
        except ArithmeticError:
            assert memory.data["stepcache"] is before
            stack[2].broken = False
            found += walk(stack, (4,), [0.3], [memory], steps=[step])
        else:  # the broken block was skipped: the step counts
            stack[2].broken = False
            found += expected[step : step + 1]
    assert same(found, expected)
    assert counts(memory) == counts(spared)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_lets_go_of_the_tensors_and_keeps_the_counts(kind):
    memory = Memory()
    walk(cached(kind), (4,), [0.0], [memory])
    row = memory.data["stepcache"]
    assert row.seen is None
    assert row.added == Series()
    assert row.computed + row.skipped == STEPS


@pytest.mark.parametrize("kind", ["teacache,threshold=1e9", "dbcache,threshold=1e9,warm_up=1"])
def test_a_row_whose_size_changed_runs(kind):
    stack, memory = cached(kind), Memory()
    walk(stack, (4,), [0.0], [memory], steps=[0])
    walk(stack, (6,), [0.0], [memory], steps=[1])
    assert counts(memory) == (2, 0)


def test_without_memories_every_block_runs():
    stack = cached("teacache,threshold=1e9")
    (part,), shift = toy_rows((4,))
    for _ in range(3):
        stack(part[None], ToyCond(Layout((4,)), shift))
    assert stack[0].rows_run == 3


@pytest.mark.parametrize(("choice", "message"), [("dbcache,first=3", "at most 2"), ("dbcache,first=2,last=1", "has 3")])
def test_a_choice_that_leaves_no_block_to_skip_is_refused(choice, message):
    with pytest.raises(RequestError, match=message):
        walk(cached(choice), (4,), [0.0], [Memory()])


# -- limits, masks --------------------------------------------------------------------------------------------------


def test_warm_up_runs_in_a_row_and_the_whole_number_of_skips_are_bounded():
    assert skipped_steps("dbcache,threshold=9,in_a_row=99,warm_up=3") == [3, 4, 5, 6, 7]
    assert skipped_steps("dbcache,threshold=9,in_a_row=2,warm_up=1") == [1, 2, 4, 5, 7]
    assert skipped_steps("dbcache,threshold=9,in_a_row=2,warm_up=1,most=3") == [1, 2, 4]
    assert skipped_steps("dbcache,threshold=9,warm_up=0,in_a_row=1") == [1, 3, 5, 7]


@pytest.mark.parametrize("kind", ["teacache", "dbcache", "magcache"])
def test_a_mask_says_which_steps_run_in_any_case_and_if_forced_which_do_not(kind):
    loose = skipped_steps(f"{kind},threshold=1e9,mask=11011010", speed=2.0)
    assert loose == [2, 5] + ([] if kind == "teacache" else [7])
    never = skipped_steps(f"{kind},threshold=1e-9,mask=11011010", speed=2.0)
    assert never == []
    assert skipped_steps(f"{kind},threshold=1e-9,mask=11011010,forced=true", speed=2.0) == [2, 5, 7]


def test_a_word_for_a_mask_is_drawn_for_the_steps_there_are():
    assert skipped_steps("dbcache,threshold=9,mask=fast,in_a_row=9") == [3, 5, 6]
    assert skipped_steps("dbcache,threshold=9,mask=fast,forced=true", steps=28) == [
        *(6, 8, 9, 10, 12, 13, 14, 15, 17, 18, 19, 20, 21, 23, 24, 25, 26)
    ]


def test_what_is_evaluated_once_needs_no_choice_and_of_two_steps_one_may_be_skipped():
    stack, memory = cached("dbcache,first=9,mask=1011"), Memory()
    walk(stack, (4,), [0.0], [memory], steps=[0], every=1)
    assert "stepcache" not in memory.data
    assert skipped_steps("dbcache,threshold=9,warm_up=0", steps=2) == [1]


def test_a_first_step_that_a_forced_mask_skips_is_computed_as_there_is_nothing_to_repeat():
    assert skipped_steps("dbcache,mask=00101111,forced=true") == [1, 3]


# -- the kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.05, 0.2])
def test_teacache_adds_up_changes_from_each_step_to_the_next(speed):
    stack, ((part,), shift), layout = toy_stack(), toy_rows((4,)), Layout((4,))
    seen = [stack[0].probe(part[None] * (1 + speed * step), ToyCond(layout, shift)) for step in range(STEPS)]
    expected, drift = [], 0.0
    for step in range(1, STEPS - 1):
        drift += float((seen[step] - seen[step - 1]).abs().mean() / seen[step - 1].abs().mean())
        if drift < 1.5 * speed:
            expected.append(step)
        else:
            drift = 0.0
    assert 1 < len(expected) < STEPS - 2
    assert skipped_steps("teacache", speed, fits=Fits(TeaFit((1.0, 0.0), 1.5 * speed))) == expected


def test_teacache_always_runs_the_first_and_the_last_step():
    assert skipped_steps("teacache,threshold=1e9", speed=0.5) == list(range(1, STEPS - 1))


def test_teacache_adds_drift_up_over_skipped_steps_until_it_passes_the_threshold():
    fits = Fits(TeaFit((0.1,), 0.25))  # each step adds 0.1: every third one runs
    assert skipped_steps("teacache", steps=10, fits=fits) == [1, 2, 4, 5, 7, 8]


def first_changes(speed, blocks=1, steps=STEPS):
    """What the first blocks add at every step, written out."""
    stack, ((part,), shift), found = toy_stack(), toy_rows((4,)), []
    for step in range(steps):
        hidden = before = part[None] * (1 + speed * step)
        for block in list(stack)[:blocks]:
            hidden = block(hidden, ToyCond(Layout((4,)), shift))
        found.append(hidden - before)
    return found


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("speed", [0.05, 0.2])
def test_dbcache_skips_where_the_first_blocks_add_what_they_added_when_all_ran(threshold, first, speed):
    added, expected, kept = first_changes(speed, first), [], 0
    for step in range(1, STEPS):
        change = (added[step] - added[kept]).abs().mean() / added[kept].abs().mean()
        if change < threshold:
            expected.append(step)
        else:
            kept = step
    assert skipped_steps(f"dbcache,threshold={threshold},first={first},warm_up=0,in_a_row=99", speed) == expected


def test_of_a_skipped_step_the_first_and_the_last_blocks_run():
    stack, memory = cached("dbcache,threshold=9,first=2,last=1,warm_up=1,in_a_row=99", blocks=5), Memory()
    walk(stack, (4,), [0.1], [memory])
    assert [block.rows_run for block in stack] == [STEPS, STEPS, 1, 1, STEPS]


@pytest.mark.parametrize("kind", ["teacache", "magcache"])
def test_of_a_step_that_is_skipped_by_what_comes_before_the_blocks_none_runs(kind):
    stack, memory = cached(f"{kind},threshold=9"), Memory()
    walk(stack, (4,), [0.1], [memory])
    computed, skipped = counts(memory)
    assert skipped and [block.rows_run for block in stack] == [computed] * 3


@pytest.mark.parametrize(("steps", "first"), [(2, 1), (7, 1), (8, 2), (12, 2), (13, 3)])
def test_magcache_computes_a_fifth_of_the_steps_to_the_nearest_before_it_skips(steps, first):
    assert skipped_steps("magcache,threshold=9", steps=steps)[0] == first


@pytest.mark.parametrize("threshold", [0.03, 0.1, 0.25, 0.6])
@pytest.mark.parametrize("most", [1, 3])
def test_magcache_skips_while_the_error_to_expect_stays_small(threshold, most):
    expected, growth, error, run = [], 1.0, 0.0, 0
    for step in range(2, STEPS):  # a fifth of eight steps, to the nearest, comes first
        growth *= RATIOS[step]
        error += abs(1 - growth)
        run += 1
        if error < threshold and run <= most:
            expected.append(step)
        else:
            growth, error, run = 1.0, 0.0, 0
    assert skipped_steps(f"magcache,threshold={threshold},in_a_row={most}", speed=0.5) == expected


def test_ratios_of_another_number_of_steps_are_the_nearest():
    assert [nearest((1.0, 2.0, 3.0), step, 5) for step in range(5)] == [1.0, 1.0, 2.0, 3.0, 3.0]  # halves go to even


# -- forecasts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_series_continues_what_it_is_of_that_order_for_even_steps(order):
    """Of the first order exactly; of higher ones as finite differences have it, which is written out."""
    values, series = [torch.tensor([1.0 + 2 * t]) for t in range(6)], Series()
    for step in range(4):
        series = series.then(values[step], step, order)
    assert torch.allclose(series.at(5), values[5] if order else values[3])
    cubes, series = [torch.tensor([float(t**3)]) for t in range(6)], Series()
    for step in range(4):
        series = series.then(cubes[step], step, order)
    differences = [27.0, 19.0, 12.0, 6.0][: order + 1]
    assert series.at(5).item() == pytest.approx(
        sum(term * 2**power / math.factorial(power) for power, term in enumerate(differences))
    )


def test_a_series_over_uneven_steps_divides_by_how_far_they_are_apart():
    series = Series().then(torch.tensor([0.0]), 0, 1).then(torch.tensor([6.0]), 3, 1)
    assert series.at(5).item() == 10.0


def test_a_forecast_is_nearer_to_what_would_have_been_computed_than_a_repetition():
    plain, errors = walk(toy_stack(), (4,), [0.02], [Memory()]), []
    for order in (0, 1):
        found = walk(cached(f"dbcache,threshold=9,warm_up=3,order={order}"), (4,), [0.02], [Memory()])
        errors.append(sum((a[0] - b[0]).abs().sum().item() for a, b in zip(plain, found, strict=True)))
    assert errors[1] < errors[0] / 3


def test_a_default_is_completed_for_the_model_and_a_request_says_otherwise():
    stack = cached("teacache", Fits(TeaFit((1.0, 0.0), 9.0)))
    default, off, own = Memory(), Memory(cache="none"), Memory(cache="dbcache,threshold=9,warm_up=2")
    walk(stack, (4, 4, 4), [0.1] * 3, [default, off, own])
    assert counts(default) == (2, STEPS - 2)
    assert "stepcache" not in off.data
    assert counts(own) == (3, 5)  # two, then every fourth


@pytest.mark.parametrize("choice", [CacheConfig("magcache"), CacheConfig("auto")])
def test_what_needs_a_measured_model_is_refused_for_one_that_was_not(choice):
    with pytest.raises(ConfigError, match="omnimuse calibrate"):
        StepCache(choice, replace(FITS, ratios=()))
