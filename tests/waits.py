"""What tests of the host's waits share: requests with long loops, and what every step of theirs waited for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet

from omnimuse.core.output import Done, Event, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.pipeline.stage import Loop
from omnimuse.worker.runner import Runner
from tests.invariants.conftest import Subject
from tests.second_device import SecondDevice
from tests.under_way import SENT, TOLD

Waits = dict[str, list[tuple[int, list[str]]]]
"""By loop, for each tick in which all states took a step in the middle of it: forwards, and waits of the host."""

READ = 6
"""Steps in which the longest of what is told something is read, and with what was read begins to speak."""
_WAIT = re.compile(r"\(.*\) to the host at (\w+)\.py:")


def long_asks(subject: Subject) -> list[Ask]:
    """Every wish, to the end, with loops that are long enough to have a middle at the same time."""
    frames = {"num_frames": 13} if subject.family.wishes[0].params.num_frames else {}
    lasting = {"seconds": 3.2, "extra": None} if subject.family.sounds else {}
    choices = {"output_type": "pt", "num_inference_steps": 5, **frames, **lasting, **subject.family.long}
    return [subject.ask(index, **choices) for index in range(len(subject.family.wishes))]


def loops(runner: Runner) -> list[Loop]:
    return [stage for stage in runner.pipeline.stages if isinstance(stage, Loop)]


def waits_of_steps(runner: Runner, device: SecondDevice, tick: Callable[[], Sequence[Event] | None]) -> Waits:
    """What `tick` waits for while it drives `runner`, until it gives None."""
    found: Waits = {loop.name: [] for loop in loops(runner)}
    while True:
        forwards = runner.forwards.count
        device.waits.clear()
        if (events := tick()) is None:
            return found
        steps = [event for event in events if isinstance(event, Progress)]
        [*stages] = {step.stage for step in steps}
        if len(stages) == 1 and stages[0] in found and all(1 < step.step < (step.steps or 0) for step in steps):
            found[stages[0]].append((runner.forwards.count - forwards, of_steps(device, events)))


def of_steps(device: SecondDevice, events: Sequence[Event]) -> list[str]:
    """What a tick waited for, but for what is collected of a request that has ended in it."""
    ended = any(isinstance(event, Done) for event in events)
    return [wait for wait in device.waits if not (ended and wait.startswith((SENT, TOLD)))]


def ticking(engine: Engine, events: list[Event] | None = None) -> Callable[[], Sequence[Event] | None]:
    """Ticks of `engine` while it has something to do; what happens in them is added to `events`."""

    def tick() -> Sequence[Event] | None:
        if engine.idle:
            return None
        found = engine.tick()
        if events is not None:
            events.extend(found)
        return found

    return tick


def waits_of_words(
    engine: Engine, device: SecondDevice, stages: AbstractSet[str], beside: AbstractSet[str] = frozenset()
) -> Iterator[tuple[int, Counter[str]]]:
    """For each tick in which all went on to write or speak, steps of `stages` alone, and nobody began: forwards, and
    how often the host waited for what came to it in which module, or for anything else. With steps of any number of
    loops `beside`, of which there must be some.
    """
    while not engine.idle:
        device.waits.clear()
        forwards = engine.runner.forwards.count
        events = engine.tick()
        steps = [event for event in events if isinstance(event, Progress)]
        told = {step.stage for step in steps}
        if not steps or not told <= stages | beside or (beside and not told & beside):
            continue
        if all(step.step > READ for step in steps if step.stage in stages):
            found = Counter(match[1] if (match := _WAIT.match(wait)) else wait for wait in of_steps(device, events))
            yield engine.runner.forwards.count - forwards, found
