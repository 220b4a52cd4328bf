"""Models that write, speak or do both on a device that is not the CPU: nothing is left behind, and a step waits
for what was chosen and nothing else.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Progress, Result
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.families import ANSWERERS, SPEAKERS, WRITERS
from tests.checkpoints.library_text import EVERY
from tests.checkpoints.wishes import Answerer, Speaker, Writer
from tests.invariants import test_answering, test_speaking, test_writing
from tests.invariants.conftest import config, drain, results, submit
from tests.second_device import SecondDevice, moved

Teller = Writer | Speaker | Answerer
TELLERS: tuple[Teller, ...] = (*WRITERS, *EVERY, *SPEAKERS, *ANSWERERS)
READ = 6
"""Steps in which the longest of them is read, and with what was read begins to speak."""
WAIT = re.compile(r"\(.*\) to the host at (\w+)\.py:")
KNOWN = {"remembering", "experts", "talking"}
"""Where the host may wait in a step: for what rows say, for which experts are asked, for the first code of a frame."""


@pytest.fixture(scope="module", params=TELLERS, ids=lambda teller: teller.name)
def teller(request: pytest.FixtureRequest) -> Teller:
    found: Teller = request.param
    return found


@pytest.fixture
def device() -> Iterator[SecondDevice]:
    with SecondDevice() as device:
        yield device
        gc.collect()  # what is let go of touches the device


@pytest.fixture
def resident(folder: Path) -> Iterator[Engine]:
    """One as an accelerator has it, where nothing is known about the bits of other tiers."""
    made = start(config(folder, schedule=ScheduleConfig(tier="fast", strict_slots=True, company="always")))
    yield made
    made.close()


def asks_of(teller: Teller) -> list[Ask]:
    """All that it is asked elsewhere, one of them longer than what is read in one step."""
    if isinstance(teller, Writer):
        return [test_writing.ask(teller, index) for index in range(max(len(teller.prompts), len(teller.choices)))]
    if isinstance(teller, Speaker):
        return test_speaking.asks(teller)
    return [test_answering.ask(number, max_tokens=20) for number in range(len(test_answering.TALKS))]


def told(engine: Engine, asks: Sequence[Ask]) -> list[Result]:
    """What all of them are answered, in flight together."""
    ids = submit(engine, *asks)
    return results(engine, drain(engine), ids)


@pytest.mark.crossed
@pytest.mark.parametrize("offload", ["none", pytest.param("layers", marks=pytest.mark.slow)])
def test_a_second_device_tells_what_the_cpu_tells(
    teller: Teller, resident: Engine, device: SecondDevice, offload: str
) -> None:
    expected = told(resident, asks_of(teller))
    for found, plain in zip(told(moved(resident, device, offload), asks_of(teller)), expected, strict=True):
        assert found.written == plain.written
        assert found.tensors.keys() == plain.tensors.keys()
        for name, made in found.tensors.items():
            assert all(torch.equal(*pair) for pair in zip(made, plain.tensors[name], strict=True))


@pytest.mark.crossed
def test_a_step_waits_for_what_was_chosen_and_for_nothing_else(
    teller: Teller, resident: Engine, device: SecondDevice
) -> None:
    """For what is written twice a forward at most, where some rows want the likeliest token and others choose; for the
    first code of each frame of sound; and once in a layer of experts.
    """
    engine = moved(resident, device)
    submit(engine, *asks_of(teller))
    seen = 0
    while not engine.idle:
        device.waits.clear()
        forwards = engine.runner.forwards.count
        steps = [event for event in engine.tick() if isinstance(event, Progress)]
        if (
            not steps
            or {step.stage for step in steps} - {"generate", "talk", "paint"}
            or min(step.step for step in steps) <= READ
        ):
            continue  # somebody begins
        found = [match[1] if (match := WAIT.match(wait)) else wait for wait in device.waits]
        each = Counter(found)
        assert each.keys() <= KNOWN, device.waits
        seen += 1
        forwards = engine.runner.forwards.count - forwards
        assert each["remembering"] <= 2 * forwards, device.waits
        assert each["talking"] <= sum(step.stage == "talk" for step in steps), device.waits
    assert seen
