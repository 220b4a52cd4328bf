"""What tests of the host's waits share: requests with long loops, and what every step of theirs waited for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omnimuse.core.output import Event, Progress
from omnimuse.core.request import Ask
from omnimuse.pipeline.stage import Loop
from omnimuse.worker.runner import Runner
from tests.invariants.conftest import Subject
from tests.second_device import SecondDevice

Waits = dict[str, list[tuple[int, list[str]]]]
"""By loop, for each tick in which all states took a step in the middle of it: forwards, and waits of the host."""


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
            found[stages[0]].append((runner.forwards.count - forwards, list(device.waits)))
