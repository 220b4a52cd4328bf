"""The simulator tells what an engine does: a real engine, with a network, on a clock that only its forwards move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from omnimuse.core.config import Config, HostConfig, ModelConfig, ScheduleConfig
from omnimuse.core.output import Done, Failed
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, StackRunner
from omnimuse.simulate.arrivals import Arrival, Mix, poisson
from omnimuse.simulate.replica import Costs, Job, Ours
from omnimuse.simulate.table import Kind
from tests.checkpoints import z_image

SCHEDULE = ScheduleConfig(company="always", max_running=4)
SIDES = {"small": 32, "large": 64}
STEPS = {"small": 6, "large": 12}
SECONDS_A_TOKEN = 0.01


Ends = dict[int, tuple[bool, float]]
"""By the number of an arrival: whether it was drawn, and when it ended."""


class Clock:
    """Time that passes in forwards only."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A stack runner in which every step of a row takes what its kind says."""

    def __init__(self, inner: StackRunner, clock: Clock, seconds: dict[int, float]) -> None:
        self.inner, self.clock, self.seconds = inner, clock, seconds

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        assert memories is not None
        self.clock.now += sum(self.seconds[memory.steps] for memory in memories)
        return self.inner(blocks, hidden, cond, memories)

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return z_image.build(tmp_path_factory.mktemp("tiny") / "whole")


def asked(arrival: Arrival) -> Ask:
    side, steps = SIDES[arrival.kind], STEPS[arrival.kind]
    params = DiffusionParams(height=side, width=side, num_inference_steps=steps, guidance_scale=0.0, seed=1)
    return Ask("a ring", params, timeout=arrival.target)


def kinds_of(engine: Engine) -> dict[str, Kind]:
    """What the engine's own scheduler takes each kind for, and seconds that follow from it."""
    found = {}
    for name, side in SIDES.items():
        tokens = engine.runner.tokens(engine.make_request(asked(Arrival(0.0, name))))
        found[name] = Kind(side, side, STEPS[name], SECONDS_A_TOKEN * tokens, tokens=tokens)
    return found


def drawn(engine: Engine, clock: Clock, arrivals: Sequence[Arrival]) -> Ends:
    """What becomes of `arrivals` in the engine."""
    numbers, ended, waiting = dict[str, int](), Ends(), list(enumerate(arrivals))
    while waiting or not engine.idle:
        while waiting and (waiting[0][1].at <= clock.now or engine.idle):
            number, arrival = waiting.pop(0)
            clock.now = max(clock.now, arrival.at)
            request = engine.make_request(asked(arrival))
            numbers[engine.submit(request)] = number
        for event in engine.tick():
            if isinstance(event, Done | Failed):
                ended[numbers[event.request_id]] = (isinstance(event, Done), clock.now)
    return ended


def simulated(kinds: dict[str, Kind], arrivals: Sequence[Arrival], engine: Engine) -> Ends:
    """The same of the simulator's replica."""
    chooser, now, waiting = Ours(Costs(1.0, 1.0), SCHEDULE, []), 0.0, list(enumerate(arrivals))
    numbers, ended = dict[int, int](), Ends()
    while waiting or chooser.jobs:
        while waiting and (waiting[0][1].at <= now or not chooser.jobs):
            number, arrival = waiting.pop(0)
            now = max(now, arrival.at)
            request = engine.door.make_request(asked(arrival), now, 1)
            job = Job(arrival, kinds[arrival.kind], request)
            numbers[id(job)] = number
            chooser.add(job, now)
        turn = chooser.turn(now)
        for job in turn.late:
            ended[numbers[id(job)]] = (False, now)
        now += turn.seconds
        for job in turn.jobs:
            job.done += 1
            if job.finished:
                chooser.finish(job)
                ended[numbers[id(job)]] = (True, now)
    return ended


def both(folder: Path, rate: float, target: float | None) -> tuple[Ends, Ends]:
    """What becomes of the same arrivals in the engine and in the simulator."""
    clock = Clock()
    model = ModelConfig(str(folder), dtype="float32", device="cpu")
    built = start(Config(model, schedule=SCHEDULE, host=HostConfig(threads=1)))
    engine = Engine(built.runner, built.door, clock)
    kinds = kinds_of(engine)
    network = engine.runner.pipeline.ctx.components["transformer"]
    assert isinstance(network, Network)
    stack = network.last_stack()
    stack.runner = Slow(stack.runner, clock, {kind.steps: kind.step for kind in kinds.values()})
    came = poisson(rate, 20.0, Mix({"small": 2, "large": 1}, seed=3))
    arrivals = [Arrival(each.at, each.kind, target=target) for each in came]
    real, made = drawn(engine, clock, arrivals), simulated(kinds, arrivals, engine)
    engine.close()
    assert len(real) == len(made) == len(arrivals) > 15
    return real, made


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_every_request_ends_when_the_simulator_says(folder: Path, rate: float) -> None:
    real, made = both(folder, rate, None)
    assert all(done for done, _ in real.values())
    assert [real[number][1] for number in sorted(real)] == pytest.approx([made[number][1] for number in sorted(real)])


def test_under_overload_as_many_are_in_time_as_the_simulator_says(folder: Path) -> None:
    real, made = (sum(done for done, _ in ends.values()) for ends in both(folder, 2.0, 5.0))
    assert 0.85 * real <= made <= 1.15 * real and real < 36
