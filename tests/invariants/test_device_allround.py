"""What holds on a device that is not the CPU for every pipeline, for those that draw and write with one network: the
same tests, with other subjects, and what they write.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch

from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.media.picture import picture_of
from omnimuse.models.bagel.spec import BagelParams
from tests.checkpoints.bagel import ASKED, answers
from tests.checkpoints.families import ALLROUNDERS
from tests.invariants import test_device as every
from tests.invariants.conftest import Subject, drain, of, results, submit
from tests.second_device import SecondDevice, moved
from tests.waits import long_asks, waits_of_words

pytestmark = [of(ALLROUNDERS), pytest.mark.crossed]

Make = Callable[..., Engine]
adapters, device = every.adapters, every.device

test_a_cache_decides_for_all_rows_of_a_forward_with_one_wait = (
    every.test_a_cache_decides_for_all_rows_of_a_forward_with_one_wait
)
test_a_second_device_draws_all_at_once_as_the_cpu_does = every.test_a_second_device_draws_all_at_once_as_the_cpu_does
test_a_second_device_draws_what_the_cpu_draws = every.test_a_second_device_draws_what_the_cpu_draws
test_a_second_device_skips_what_the_cpu_skips = every.test_a_second_device_skips_what_the_cpu_skips
test_an_adapter_that_nobody_wore_yet_is_read_and_worn_without_a_wait = (
    every.test_an_adapter_that_nobody_wore_yet_is_read_and_worn_without_a_wait
)
test_pools_on_second_devices_make_what_those_of_the_cpu_make = (
    every.test_pools_on_second_devices_make_what_those_of_the_cpu_make
)
test_previews_come_from_the_second_device = every.test_previews_come_from_the_second_device
test_who_waits_and_who_has_begun_when_weights_leave_the_second_device_are_drawn_as_by_the_cpu = (
    every.test_who_waits_and_who_has_begun_when_weights_leave_the_second_device_are_drawn_as_by_the_cpu
)
test_what_is_read_to_a_second_device_draws_what_is_read_to_the_cpu = (
    every.test_what_is_read_to_a_second_device_draws_what_is_read_to_the_cpu
)
test_what_is_worn_makes_no_step_wait = every.test_what_is_worn_makes_no_step_wait


def asked() -> list[Ask]:
    """What is asked about pictures."""
    return [
        Ask(
            {"prompt": text, "images": [picture_of(each) for each in pictures]},
            DiffusionParams(seed=seed, extra=BagelParams(modalities=("text",), **chosen)),
        )
        for text, pictures, chosen, seed in ASKED
    ]


def test_what_it_says_of_pictures_is_what_the_published_code_says(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    engine = moved(engine_with(schedule=every.FAST), device)
    ids = submit(engine, *asked())
    written = [note for result in results(engine, drain(engine), ids) for note in result.written]
    assert [list(note.tokens) for note in written] == answers()


def test_a_word_waits_for_what_was_chosen_and_for_nothing_else(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    engine = moved(engine_with(schedule=every.FAST), device)
    submit(engine, *asked())
    ticks = [*waits_of_words(engine, device, {"write"})]
    assert ticks
    for forwards, found in ticks:
        assert found.keys() <= {"remembering"} and found.total() <= 2 * forwards, found


@pytest.mark.parametrize(
    "way", ["resident", *(pytest.param(way, marks=pytest.mark.slow) for way in every.WAYS if way != "resident")]
)
def test_no_step_that_reads_or_draws_makes_the_host_wait(
    subject: Subject, engine_with: Make, device: SecondDevice, way: str
) -> None:
    """Those that begin with pictures read for some ticks."""
    parts, offload = every.WAYS[way]
    engine = moved(engine_with(schedule=every.FAST, **parts), device, offload)
    with torch.compiler.set_stance("force_eager") if way == "compile" else nullcontext():
        drawn, pictured = (every.waits(engine, device, *asks) for asks in _apart(long_asks(subject)))
    for ticks in (drawn["denoise"], pictured["read"], pictured["denoise"]):
        assert ticks
        assert [waited for _, waited in ticks if waited] == []


def _apart(asks: Sequence[Ask]) -> tuple[list[Ask], list[Ask]]:
    """Those that draw without thinking: of a text alone, and of pictures."""
    drawing = [ask for ask in asks if "modalities" not in (ask.params.extra or {})]
    pictured = [ask for ask in drawing if ask.prompt.get("images")]
    return [ask for ask in drawing if ask not in pictured], pictured
