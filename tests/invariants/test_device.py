"""Every registered pipeline on a device that is not the CPU: nothing is left behind, and no step makes the host wait.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from omnimuse.ar.kv import Decoder
from omnimuse.attention.backends.flex import Blocks, Flex
from omnimuse.attention.backends.varlen import Varlen
from omnimuse.attention.selection import BACKENDS
from omnimuse.core.config import (
    AttentionConfig,
    CacheConfig,
    CompileConfig,
    OffloadConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.output import Event, Preview, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.carrying import three
from tests.checkpoints.families import FAMILIES
from tests.invariants import test_lora
from tests.invariants.conftest import Subject, drain, nap, of, outputs, run, submit, tick, with_params
from tests.invariants.test_caches import asks_of, choosing
from tests.invariants.test_pools import through
from tests.second_device import PACKED, STANDING_IN, Elsewhere, Lanes, SecondDevice, moved, started
from tests.skipping import ENOUGH, counting, measured
from tests.waits import Waits, long_asks, loops, ticking, waits_of_steps

pytestmark = pytest.mark.crossed

Make = Callable[..., Engine]
FAST = ScheduleConfig(tier="fast", strict_slots=True, company="always")
"""The default on an accelerator, where nothing is known about the bits of other tiers."""

OFFLOADS = ("none", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("layers", "components")))
"""Where weights wait outside of the device."""

adapters = test_lora.adapters


@pytest.fixture
def device() -> Iterator[SecondDevice]:
    with SecondDevice() as device:
        yield device


def pictures(subject: Subject) -> list[Ask]:
    """Every wish, to the end: one of them begins with a picture where the family takes pictures."""
    return [subject.ask(index, output_type="pt") for index in range(len(subject.family.wishes))]


def waits(engine: Engine, device: SecondDevice, *asks: Ask) -> Waits:
    submit(engine, *asks)
    return waits_of_steps(engine.runner, device, ticking(engine))


def test_a_second_device_draws_what_the_cpu_draws(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    engine = engine_with(schedule=FAST)
    expected = run(engine, *pictures(subject))
    for found, plain in zip(run(moved(engine, device), *pictures(subject)), expected, strict=True):
        assert torch.equal(found, plain)


PASSES: dict[str, dict[str, Any]] = {
    "components": {"offload": OffloadConfig("components")},
    "layers": {"offload": OffloadConfig("layers")},
    "int8": {"quantize": QuantConfig({"": "int8"})},
}
"""What is done to weights while they are read: topics of the configuration."""


@pytest.mark.slow
@pytest.mark.parametrize("how", PASSES)
def test_what_is_read_to_a_second_device_draws_what_is_read_to_the_cpu(
    subject: Subject, device: SecondDevice, how: str
) -> None:
    """By the passes that everybody's models go through, from the files on."""
    topics, asks = {"schedule": FAST, **PASSES[how]}, pictures(subject)
    with closing(start(subject.config(**topics))) as engine:
        expected = run(engine, *asks)
    with closing(started(subject.config(**topics), device)) as engine:
        found = run(engine, *asks)
        assert not engine.runner.forwards.retries
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.slow
def test_rows_of_other_lengths_attend_in_one_call_and_nobody_waits(
    subject: Subject, device: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPUs have it: `varlen`, which asks for one by name. What it is given there, a CPU attends to row by row."""
    calls, whole = list[int](), STANDING_IN[PACKED]
    monkeypatch.setitem(STANDING_IN, PACKED, lambda *given: calls.append(len(given[3])) or whole(*given))
    monkeypatch.setattr(Varlen, "why_not", lambda self, *place: self.missing())
    chosen, asks = subject.config(schedule=FAST), long_asks(subject)
    chosen = replace(chosen, model=replace(chosen.model, dtype="bfloat16"))
    with closing(start(chosen)) as engine:
        expected = run(engine, *asks)
    with closing(started(replace(chosen, attention=AttentionConfig("varlen")), device)) as engine:
        ids, events = submit(engine, *asks), list[Event]()
        steps = waits_of_steps(engine.runner, device, ticking(engine, events))
    assert not engine.runner.forwards.retries
    assert any(ends > 2 for ends in calls)
    assert [waited for _, waited in steps["denoise"] if waited] == []
    assert all(torch.equal(outputs(events, id_), plain) for id_, plain in zip(ids, expected, strict=True))


@pytest.mark.slow
def test_flex_is_given_what_lies_there_and_nobody_waits(
    subject: Subject, device: SecondDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All around its kernel, which torch makes for no label but those of accelerators that it knows
    (`tests/unit/test_second_device.py`): what would be compiled attends as it is written, on a CPU.
    """
    flex, calls = BACKENDS["flex"], list[int]()
    assert isinstance(flex, Flex)

    def attend(*given: Any) -> Any:
        *rows, mask, blocks = given
        assert mask is None and all(isinstance(each, Elsewhere) for each in (*rows, *(blocks or ())))
        calls.append(0 if blocks is None else int(blocks.queries.inner[-1]) + 1)
        with _disable_current_modes():
            plain = None if blocks is None else Blocks(*(each.inner for each in blocks))
            found = flex._as_written(*(each.inner for each in rows), None, plain)
        return tuple(map(Elsewhere, found))

    monkeypatch.setitem(flex.__dict__, "_compiled", attend)
    monkeypatch.setattr(Flex, "why_not", lambda self, *place: self.missing())
    chosen, asks = subject.config(schedule=FAST, attention=AttentionConfig("flex")), long_asks(subject)
    with _disable_current_modes(), closing(start(chosen)) as engine:
        expected = run(engine, *asks)
    with closing(started(chosen, device)) as engine:
        ids, events = submit(engine, *asks), list[Event]()
        steps = waits_of_steps(engine.runner, device, ticking(engine, events))
    assert any(rows > 1 for rows in calls)
    assert [waited for _, waited in steps["denoise"] if waited] == []
    assert all(torch.equal(outputs(events, id_), plain) for id_, plain in zip(ids, expected, strict=True))


LOOKING = (
    "teacache,threshold=0.2",
    "teacache,threshold=1e6",
    "dbcache,threshold=9,warm_up=1",
    "taylorseer,threshold=9,warm_up=1",
)
"""Step caches that look at what a row is like, at each step that there is a choice about."""
BLIND = ("magcache,threshold=9,warm_up=1", "dbcache,first=0,forced=true,mask=MASK")


@pytest.mark.slow
def test_a_second_device_skips_what_the_cpu_skips(subject: Subject, engine_with: Make, device: SecondDevice) -> None:
    """By every kind of step cache, all in flight."""
    engine = measured(engine_with(schedule=FAST))
    asks = asks_of(subject, engine, *LOOKING, *BLIND)
    expected = run(engine, *asks)
    for found, plain in zip(run(moved(engine, device), *asks), expected, strict=True):
        assert torch.equal(found, plain)


@pytest.mark.slow
def test_a_paused_request_leaves_the_second_device_and_comes_back(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    engine = engine_with(schedule=FAST, cache=CacheConfig("teacache", 0.2))
    ask = subject.ask(0, output_type="pt", **subject.family.long)
    [id_] = submit(engine, ask)
    events = drain(engine)
    expected, stages = outputs(events, id_), {event.stage for event in events if isinstance(event, Progress)}
    engine = moved(engine, device)
    for loop in (loop for loop in loops(engine.runner) if loop.name in stages):  # it may go by others
        [id_] = submit(engine, ask)
        events = []
        while not any(isinstance(event, Progress) and event.stage == loop.name for event in events):
            events = tick(engine)
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


@pytest.mark.slow
@pytest.mark.parametrize("offload", OFFLOADS)
def test_who_waits_and_who_has_begun_when_weights_leave_the_second_device_are_drawn_as_by_the_cpu(
    subject: Subject, engine_with: Make, device: SecondDevice, offload: str
) -> None:
    """And when they are back, no step makes the host wait."""
    engine, asks = engine_with(schedule=FAST), long_asks(subject)
    expected, _ = rested(engine, device, asks, lambda engine: None)
    found, waited = rested(moved(engine, device, offload), device, asks, nap)
    assert waited["denoise"] and [waits for _, waits in waited["denoise"] if waits] == []
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def rested(
    engine: Engine, device: SecondDevice, asks: Sequence[Ask], rest: Callable[[Engine], None]
) -> tuple[list[Tensor], Waits]:
    """What all of them become, the first of which waits while the others are drawn, and what these waited for after a
    `rest` behind their first step.
    """
    [first] = submit(engine, asks[0])
    events = tick(engine)
    engine.pause(first)
    events += tick(engine)
    others = submit(engine, *asks[1:])
    events += tick(engine)
    rest(engine)
    waited = waits_of_steps(engine.runner, device, ticking(engine, events))
    engine.resume(first)
    events += drain(engine)
    return [outputs(events, id_) for id_ in (first, *others)], waited


def everything(subject: Subject, adapters: tuple[Path, Path]) -> list[Ask]:
    """Every wish, twice, to the end and with previews, each with other adapters."""
    one, two = map(str, adapters)
    worn = ([f"{one}:0.8"], [two], [one, f"{two}:-0.5"])
    return [
        subject.ask(index, output_type="pt", num_outputs_per_prompt=2, loras=worn[index % 3], previews=1, **ENOUGH)
        for index in range(len(subject.family.wishes))
    ]


def interrupted(engine: Engine, asks: list[Ask]) -> list[Tensor]:
    """What all of them become, the first of which waits for a tick when it has been seen."""
    first, *others = submit(engine, *asks)
    events: list[Event] = []
    while not any(isinstance(event, Preview) and event.request_id == first for event in events):
        events += tick(engine)
    engine.pause(first)
    events += tick(engine)
    engine.resume(first)
    events += drain(engine)
    return [outputs(events, id_) for id_ in (first, *others)]


@pytest.mark.slow
@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_second_device_draws_all_at_once_as_the_cpu_does(
    subject: Subject, engine_with: Make, device: SecondDevice, adapters: tuple[Path, Path], offload: str
) -> None:
    """What requests begin with, several outputs, adapters, previews, a step cache and a pause, together."""
    engine = engine_with(schedule=FAST, cache=CacheConfig("teacache", 1e6))
    asks = everything(subject, adapters)
    with counting(engine) as skipped:
        expected = interrupted(engine, asks)
    assert len(skipped) >= len(asks) and all(skipped.values()), "each skips a step"
    for found, plain in zip(interrupted(moved(engine, device, offload), asks), expected, strict=True):
        assert len(found) == 2
        assert torch.equal(found, plain)


def test_what_is_worn_makes_no_step_wait(
    subject: Subject, engine_with: Make, device: SecondDevice, adapters: tuple[Path, Path]
) -> None:
    engine = moved(engine_with(schedule=FAST), device)
    one, two = map(str, adapters)
    asks = [with_params(ask, loras=[one, f"{two}:-0.5"]) for ask in long_asks(subject)]
    ticks = waits(engine, device, *asks)["denoise"]
    assert ticks, "no tick took only steps"
    assert [waited for _, waited in ticks if waited] == []


@pytest.mark.parametrize("way", ["resident", pytest.param("compile", marks=pytest.mark.slow)])
def test_an_adapter_that_nobody_wore_yet_is_read_and_worn_without_a_wait(
    subject: Subject, engine_with: Make, device: SecondDevice, adapters: tuple[Path, Path], way: str
) -> None:
    """Nothing waits for the device that would not wait without the adapter."""
    parts, offload = WAYS[way]
    engine = moved(engine_with(schedule=FAST, **parts), device, offload)
    plain = subject.ask(0)
    with torch.compiler.set_stance("force_eager") if way == "compile" else nullcontext():
        run(engine, plain)
        without, worn = (
            waits_of_all(engine, device, ask) for ask in (plain, with_params(plain, loras=[str(adapters[0])]))
        )
    assert worn == without


def waits_of_all(engine: Engine, device: SecondDevice, ask: Ask) -> Counts[str]:
    """What the host waits for while `ask` is drawn, from the beginning to the end."""
    device.waits.clear()
    run(engine, ask)
    return Counts(device.waits)


@pytest.mark.slow
def test_pools_on_second_devices_make_what_those_of_the_cpu_make(
    subject: Subject, shared: Engine, engine_with: Make, device: SecondDevice
) -> None:
    """What one hands over to the next goes by way of the CPU."""
    deploy = three(shared.runner.pipeline.stages)
    engines = [engine_with(schedule=FAST, deploy=replace(deploy, pool=pool.name)) for pool in deploy.pools]
    requests = [shared.make_request(ask) for ask in pictures(subject)]
    events = through(engines, requests)
    with torch.inference_mode():  # there nobody can look at a part of what was uploaded outside of it
        there = through([moved(engine, device) for engine in engines], requests)
    for request in requests:
        assert torch.equal(outputs(there, request.id), outputs(events, request.id))


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "resident": ({}, "none"),
    "components": ({}, "components"),
    "layers": ({}, "layers"),
    "compile": ({"compile": CompileConfig("blocks")}, "none"),
}
"""Ways to have weights and blocks: topics of the configuration, and how weights wait outside of the device."""


@pytest.mark.parametrize(
    "way", ["resident", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS if way != "resident")]
)
def test_no_step_makes_the_host_wait(subject: Subject, engine_with: Make, device: SecondDevice, way: str) -> None:
    """What is compiled runs as it is, with all that is done around it: the compiler knows no second device, and refuses
    to compile a whole block that reads numbers back.
    """
    parts, offload = WAYS[way]
    engine = moved(engine_with(schedule=FAST, **parts), device, offload)
    with torch.compiler.set_stance("force_eager") if way == "compile" else nullcontext():
        found = waits(engine, device, *long_asks(subject))
    components = engine.runner.pipeline.ctx.components
    written = {loop.name for loop in loops(engine.runner) if isinstance(components.wherever(loop.uses[0]), Decoder)}
    for loop, ticks in found.items():
        assert ticks, f"no tick took only steps of {loop}"
        if loop in written:  # a token is chosen on the host, of one request here
            assert {len(waited) for _, waited in ticks} == {1}, loop
        else:
            assert [waited for _, waited in ticks if waited] == [], loop


@of([family for family in FAMILIES if family.name in ("ZImagePipeline", "FluxPipeline-dev", "WanPipeline-2.1")])
def test_a_component_is_copied_while_the_one_before_it_computes(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    """The first is waited for; each that follows is on its way before the one before it has computed for the last time.

    By the order in which copies and layers were asked for: the device's own events keep it (`tests/unit/offload`).
    """
    lanes = Lanes()
    engine = moved(engine_with(schedule=FAST), device, "components", lanes)
    components, log = engine.runner.pipeline.ctx.components, lanes.log
    modules = {name: part for name in components if isinstance(part := components.wherever(name), nn.Module)}
    for name, module in modules.items():
        for part in module.modules():
            part.register_forward_hook(lambda *given, name=name: log.append(name))
    run(engine, subject.ask(0, output_type="pt"))
    copies = [at for at, what in enumerate(log) if what not in modules]
    order = list(dict.fromkeys(what for what in log if what in modules))
    assert len(copies) == len(order) > 2, "each comes once"
    last = {name: at for at, name in enumerate(log)}
    ahead = [number for number, at in enumerate(copies) if log[at] == "written"]
    assert ahead[-2:] == [len(order) - 2, len(order) - 1], "the network that draws, and the decoder"
    assert all(copies[number] < last[order[number - 1]] for number in ahead)


@pytest.mark.slow
def test_a_cache_decides_for_all_rows_of_a_forward_with_one_wait(
    subject: Subject, engine_with: Make, device: SecondDevice
) -> None:
    """With none where it goes by the number of the step alone."""
    engine = moved(measured(engine_with(schedule=FAST)), device)
    for choice in (*LOOKING, *BLIND):
        ticks = waits(engine, device, *(choosing(engine, ask, choice) for ask in long_asks(subject)))["denoise"]
        assert any(found for _, found in ticks) == (choice in LOOKING), choice
        for forwards, found in ticks:
            # A network's first step of a request (Wan's second expert) has nothing to compare with and does not wait.
            assert len(found) in (0, forwards), (choice, found)
