"""Models that write, speak or do both on a device that is not the CPU: nothing is left behind, and a step waits
for what was chosen and nothing else.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse.core.output import Result
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.adapters import telling
from tests.checkpoints.families import ANSWERERS, SPEAKERS, WRITERS
from tests.checkpoints.library_text import EVERY
from tests.checkpoints.wishes import Answerer, Speaker, Writer
from tests.invariants import test_answering, test_speaking, test_writing
from tests.invariants.conftest import config, drain, nap, results, submit, tick, with_params
from tests.invariants.test_device import FAST, OFFLOADS, PASSES
from tests.second_device import SecondDevice, moved, started
from tests.waits import waits_of_words

Teller = Writer | Speaker | Answerer
TELLERS: tuple[Teller, ...] = (*WRITERS, *EVERY, *SPEAKERS, *ANSWERERS)
KNOWN = {"remembering", "experts"}
"""Where the host may wait in a step: for what rows say, and for which experts are asked."""


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
    made = start(config(folder, schedule=FAST))
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


def same(found: Result, expected: Result) -> bool:
    """Whether both have the same words, and the same pictures and sounds to the bit."""
    return (
        found.written == expected.written
        and found.tensors.keys() == expected.tensors.keys()
        and all(
            torch.equal(*pair)
            for name, made in found.tensors.items()
            for pair in zip(made, expected.tensors[name], strict=True)
        )
    )


@pytest.mark.crossed
@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_second_device_tells_what_the_cpu_tells(
    teller: Teller, resident: Engine, device: SecondDevice, offload: str
) -> None:
    expected = told(resident, asks_of(teller))
    for found, plain in zip(told(moved(resident, device, offload), asks_of(teller)), expected, strict=True):
        assert same(found, plain)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("how", PASSES)
def test_what_is_read_to_a_second_device_tells_what_is_read_to_the_cpu(
    teller: Teller, folder: Path, device: SecondDevice, how: str
) -> None:
    chosen, asks = config(folder, schedule=FAST, **PASSES[how]), asks_of(teller)
    with closing(start(chosen)) as engine:
        expected = told(engine, asks)
    with closing(started(chosen, device)) as engine:
        assert all(same(*pair) for pair in zip(told(engine, asks), expected, strict=True))


@pytest.mark.crossed
def test_a_step_waits_for_what_was_chosen_and_for_nothing_else(
    teller: Teller, resident: Engine, device: SecondDevice
) -> None:
    """For what is written or spoken twice a forward at most, where some rows want the likeliest token and others
    choose, however many they are; and once in a layer of experts.
    """
    engine = moved(resident, device)
    submit(engine, *asks_of(teller))
    seen = 0
    for forwards, found in waits_of_words(engine, device, {"generate", "talk", "paint"}):
        assert found.keys() <= KNOWN, found
        seen += 1
        assert found["remembering"] <= 2 * forwards, found
    assert seen


@pytest.mark.crossed
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("teller", [*SPEAKERS, *ANSWERERS], ids=lambda teller: teller.name, indirect=True)
def test_what_is_spoken_becomes_sound_without_a_wait_but_for_the_pieces_of_a_stream(
    teller: Teller, resident: Engine, device: SecondDevice, streamed: bool
) -> None:
    engine = moved(resident, device)
    submit(engine, *(replace(ask, chunks=streamed) for ask in asks_of(teller)))
    seen = list(waits_of_words(engine, device, {"generate", "talk", "paint"}, {"decode"}))
    assert seen
    for _, found in seen:
        assert found.keys() <= KNOWN | ({"telling"} if streamed else set()), found


def haltingly(engine: Engine, ask: Ask) -> Result:
    """What somebody is answered who waits after every few ticks."""
    [id_] = submit(engine, ask)
    events = tick(engine)
    while id_ in engine.scheduler.entries:
        engine.pause(id_)
        events += engine.tick()
        assert engine.idle, "it is parked"
        engine.resume(id_)
        for _ in range(3):
            events += [] if engine.idle else engine.tick()
    [found] = results(engine, events, [id_])
    return found


@pytest.mark.crossed
def test_who_waits_and_wears_an_adapter_tells_what_it_tells_on_the_cpu(
    teller: Teller, resident: Engine, folder: Path, device: SecondDevice
) -> None:
    """An adapter is worn where names of its files fit one."""
    plain, adapter = asks_of(teller)[0], telling(folder)
    ask = plain if adapter is None else with_params(plain, loras=[f"{adapter}:0.8"])
    bare, expected = told(resident, [plain, ask])
    assert adapter is None or not same(bare, expected)
    [expected] = told(resident, [ask])
    assert same(haltingly(moved(resident, device), ask), expected)


@pytest.mark.crossed
def test_who_waits_and_who_has_begun_when_weights_leave_the_second_device_tell_what_they_tell_on_the_cpu(
    teller: Teller, resident: Engine, device: SecondDevice
) -> None:
    expected = rested(resident, asks_of(teller), lambda engine: None)
    for found, plain in zip(rested(moved(resident, device), asks_of(teller), nap), expected, strict=True):
        assert same(found, plain)


def rested(engine: Engine, asks: Sequence[Ask], rest: Callable[[Engine], None]) -> list[Result]:
    """What all of them are answered, the first of which waits when all have begun, and then comes a `rest`."""
    first, *others = submit(engine, *asks)
    events = [event for _ in range(2) for event in tick(engine)]
    engine.pause(first)
    events += tick(engine)
    rest(engine)
    engine.resume(first)
    events += drain(engine)
    return results(engine, events, [first, *others])
