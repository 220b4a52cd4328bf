"""Every registered pipeline on a device that is not the CPU: nothing is left behind, and no step makes the host wait.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from omnimuse.ar.kv import Decoder
from omnimuse.core.config import CacheConfig, ScheduleConfig
from omnimuse.core.output import Preview, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.pipeline.stage import Loop
from tests.invariants.conftest import Subject, drain, outputs, run, submit
from tests.second_device import SecondDevice, moved

pytestmark = pytest.mark.crossed

Make = Callable[..., Engine]
FAST = ScheduleConfig(tier="fast", strict_slots=True, company="always")
"""The default on an accelerator, where nothing is known about the bits of other tiers."""


@pytest.fixture
def device() -> Iterator[SecondDevice]:
    with SecondDevice() as device:
        yield device


def pictures(subject: Subject) -> list[Ask]:
    """Every wish, to the end: one of them begins with a picture where the family takes pictures."""
    return [subject.ask(index, output_type="pt") for index in range(len(subject.family.wishes))]


def long_asks(subject: Subject) -> list[Ask]:
    """Every wish, to the end, with loops that are long enough to have a middle at the same time."""
    frames = {"num_frames": 13} if subject.family.wishes[0].params.num_frames else {}
    lasting = {"seconds": 3.2, "extra": None} if subject.family.sounds else {}
    choices = {"output_type": "pt", "num_inference_steps": 5, **frames, **lasting, **subject.family.long}
    return [subject.ask(index, **choices) for index in range(len(subject.family.wishes))]


def waits_of_steps(engine: Engine, device: SecondDevice, *asks: Ask) -> dict[str, list[tuple[int, list[str]]]]:
    """By loop, for each tick in which all states took a step in the middle of it: forwards, and waits of the host."""
    found: dict[str, list[tuple[int, list[str]]]] = {s.name: [] for s in loops(engine)}
    submit(engine, *asks)
    while not engine.idle:
        forwards = engine.runner.forwards.count
        device.waits.clear()
        events = engine.tick()
        steps = [event for event in events if isinstance(event, Progress)]
        [*stages] = {step.stage for step in steps}
        if len(stages) == 1 and stages[0] in found and all(1 < step.step < step.steps for step in steps):
            found[stages[0]].append((engine.runner.forwards.count - forwards, list(device.waits)))
    return found


def loops(engine: Engine) -> list[Loop]:
    return [stage for stage in engine.runner.pipeline.stages if isinstance(stage, Loop)]


def test_a_second_device_draws_what_the_cpu_draws(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    engine = engine_with(schedule=FAST)
    expected = run(engine, *pictures(subject))
    for found, plain in zip(run(moved(engine, device), *pictures(subject)), expected, strict=True):
        assert torch.equal(found, plain)


def test_a_second_device_skips_what_the_cpu_skips(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    engine = engine_with(schedule=FAST, cache=CacheConfig("teacache", 0.2))
    expected = run(engine, *subject.asks())
    for found, plain in zip(run(moved(engine, device), *subject.asks()), expected, strict=True):
        assert torch.equal(found, plain)


def test_a_paused_request_leaves_the_second_device_and_comes_back(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    engine = engine_with(schedule=FAST, cache=CacheConfig("teacache", 0.2))
    ask = subject.ask(0, output_type="pt", **subject.family.long)
    [expected] = run(engine, ask)
    engine = moved(engine, device)
    for loop in loops(engine):
        [id_] = submit(engine, ask)
        while not any(isinstance(e, Progress) and e.stage == loop.name for e in engine.tick()):
            pass
        engine.pause(id_)
        engine.tick()
        engine.resume(id_)
        assert torch.equal(outputs(drain(engine), id_), expected)


def test_previews_come_from_the_second_device(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    engine = engine_with(schedule=FAST)
    ask = subject.ask(0, previews=1)
    [expected] = run(engine, ask)
    engine = moved(engine, device)
    [id_] = submit(engine, ask)
    events = drain(engine)
    assert any(isinstance(event, Preview) for event in events)
    assert torch.equal(outputs(events, id_), expected)


def test_no_step_makes_the_host_wait(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    engine = moved(engine_with(schedule=FAST), device)
    components = engine.runner.pipeline.ctx.components
    written = {loop.name for loop in loops(engine) if isinstance(components.wherever(loop.uses[0]), Decoder)}
    for loop, ticks in waits_of_steps(engine, device, *long_asks(subject)).items():
        assert ticks, f"no tick took only steps of {loop}"
        if loop in written:  # a token is chosen on the host, of one request here
            assert {len(waits) for _, waits in ticks} == {1}, loop
        else:
            assert [waits for _, waits in ticks if waits] == [], loop


@pytest.mark.parametrize("threshold", [0.2, 1e6])
def test_a_cache_decides_for_all_rows_of_a_forward_with_one_wait(
    subject: Subject, engine_with: Make, device: SecondDevice, threshold: float
) -> None:
    engine = moved(engine_with(schedule=FAST, cache=CacheConfig("teacache", threshold)), device)
    ticks = waits_of_steps(engine, device, *long_asks(subject))["denoise"]
    assert any(waits for _, waits in ticks), "no step decided anything"
    for forwards, waits in ticks:
        # A network's first step of a request (Wan's second expert) has nothing to compare with and does not wait.
        assert len(waits) in (0, forwards), waits
