"""The demo model in three pools, by every kind of connector: what it draws, and what happens when a pool is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor

import omnimuse
from omnimuse.core.config import Config, HostConfig, ModelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError, DeadlineError, ModelError, PoisonError, RequestCancelled, RequestError
from omnimuse.core.loras import Lora
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.params import DiffusionParams
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask, Request
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.engine.wearing import try_on
from tests.checkpoints.adapters import layers_of, write
from tests.invariants.conftest import run
from tests.waiting import wait_until

MODEL = "omnimuse/shapes"
SOON = 120.0
STEPS = 4
FAULTS = "worker.step:2:fail:triangle,worker.step:2:kill:heart"
SCHEDULE = ScheduleConfig(tier="exact", company="always")
TEXTS = ("encode prompt", "encode negative prompt")
POOLS = (
    PoolConfig("encode", (*TEXTS, "encode image", "draw image latents", "init latents"), replicas=2, connector="local"),
    PoolConfig("denoise", ("denoise",), connector="shared_memory", window=2),
    PoolConfig("decode", ("decode",), connector="tcp"),
)
CONFIG = Config(
    ModelConfig(MODEL, dtype="float32", device="cpu"),
    schedule=SCHEDULE,
    host=HostConfig(
        threads=1
    ),  # processes on a busy machine may have as many, or fewer, and sums are of other parts then
)


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    """The same model in one process."""
    engine = start(CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def group() -> Iterator[Pools]:
    """Three pools, one on a thread of this process and two in processes."""
    pools = Pools(replace(CONFIG, deploy=DeployConfig(POOLS)), faults=FAULTS)
    yield pools
    assert not any(seat.streams for seats in pools.group.seats for seat in seats), "nothing is left of what has ended"
    pools.close()


def ask(prompt: str, seed: int = 7, **choices: object) -> Ask:
    chosen = {"seed": seed, "num_inference_steps": STEPS, "output_type": "pt", **choices}
    return Ask(prompt, DiffusionParams(**chosen))  # type: ignore[arg-type]


class Told:
    """What a group tells of one request; `hear` is called with every event, on the group's own thread."""

    def __init__(self, group: Pools, asked: Ask | Request, hear: Callable[[Event], None] = lambda event: None) -> None:
        self.request = group.make_request(asked) if isinstance(asked, Ask) else asked
        self.events: list[Event] = []
        self._queue: SimpleQueue[Event] = SimpleQueue()

        def listen(event: Event) -> None:
            hear(event)
            self._queue.put(event)

        group.submit(self.request, listen)

    def end(self) -> Done | Failed:
        while True:
            event = self._queue.get(timeout=SOON)
            self.events.append(event)
            if isinstance(event, Done | Failed):
                assert self._queue.empty(), "it ends once"
                return event

    def drawn(self) -> Tensor:
        end = self.end()
        if isinstance(end, Failed):
            raise end.error
        made: Tensor = end.result.output
        return made


def expected(whole: Engine, asked: Ask) -> Tensor:
    [drawn] = run(whole, asked)
    return drawn


def at_step(number: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """Does `act` once, when that step of the drawing is told."""
    done: list[bool] = []

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and (event.stage, event.step) == ("denoise", number) and not done:
            done.append(True)
            act()

    return hear


def test_what_three_pools_draw_is_what_one_process_draws_to_the_byte(whole: Engine, group: Pools) -> None:
    asks = [ask("a red circle"), ask("a blue square", 8, num_outputs_per_prompt=3), ask("a green star", 9)]
    told = [Told(group, each) for each in (*asks, *asks)]
    found = [each.drawn() for each in told]
    for one, two, asked in zip(found[:3], found[3:], asks, strict=True):
        assert torch.equal(one, expected(whole, asked)) and torch.equal(two, one)
    steps = [event.step for event in told[0].events if isinstance(event, Progress) and event.stage == "denoise"]
    assert steps == list(range(1, STEPS + 1))
    end = told[0].events[-1]
    assert isinstance(end, Done)
    assert {"queue", "init latents", "denoise", "decode"} <= set(end.result.timings)
    assert len(end.result.steps["denoise"]) == STEPS and end.result.texts


def test_every_pool_has_only_what_its_stages_use(group: Pools) -> None:
    held = [seat.replica.weights.keys() for seats in group.group.seats for seat in seats if seat.replica is not None]
    assert [sorted(each) for each in held] == [["transformer", "vae"], ["vae"]], "a preview is decoded where it is made"


def test_a_request_that_is_cancelled_or_late_ends_once_wherever_it_is(whole: Engine, group: Pools) -> None:
    stopped: list[Told] = []
    first = Told(group, ask("a red circle", 1), at_step(1, lambda: group.cancel(first.request.id)))
    stopped.append(first)
    late = group.make_request(ask("a red circle", 2))
    stopped.append(Told(group, replace(late, deadline=0.0)))
    kinds = []
    for each in stopped:
        end = each.end()
        assert isinstance(end, Failed)
        kinds.append(type(end.error))
    assert kinds == [RequestCancelled, DeadlineError]
    asked = ask("a yellow square")
    assert torch.equal(Told(group, asked).drawn(), expected(whole, asked))


def test_a_request_that_is_paused_lets_others_by_and_goes_on_where_it_was(whole: Engine, group: Pools) -> None:
    asked = ask("a red circle", 3, num_inference_steps=9)
    paused = Told(group, asked, at_step(2, lambda: group.pause(paused.request.id)))
    other = ask("a blue star", 4)
    assert torch.equal(Told(group, other).drawn(), expected(whole, other))
    group.resume(paused.request.id)
    assert torch.equal(paused.drawn(), expected(whole, asked))
    with pytest.raises(RequestError, match="there is no request"):
        group.pause(paused.request.id)


def test_a_failure_in_a_pool_ends_its_request_alone_with_its_error(whole: Engine, group: Pools, tmp_path: Path) -> None:
    good = Told(group, ask("a red circle"))
    bad = Told(group, ask("a red triangle")).end()
    assert isinstance(bad, Failed) and isinstance(bad.error, ModelError)
    lost = Told(group, ask("a red circle", loras=[f"{tmp_path}/none.safetensors"])).end()
    assert isinstance(lost, Failed) and isinstance(lost.error, RequestError) and lost.error.param
    assert torch.equal(good.drawn(), expected(whole, ask("a red circle")))


def test_every_pool_reads_what_requests_are_to_wear_and_tells_what_that_takes(
    whole: Engine, group: Pools, tmp_path: Path
) -> None:
    both, late = [Lora("omnimuse/shapes/night", 0.5), Lora("omnimuse/shapes/hearts")], time.monotonic() + SOON
    group.try_on(both)
    try_on(whole, both)
    worn, idle = whole.runner.remembered.adapters
    while group.adapters != (worn, idle) and time.monotonic() < late:
        time.sleep(0.1)
    assert group.adapters == (worn, idle) != (0, 0), "in the one engine of four that has the layers"
    other = write(tmp_path / "other.safetensors", {"layers.0.attention.to_q": (8, 8)})
    with pytest.raises(RequestError, match=r"other.safetensors .*layers.0.attention.to_q"):
        group.try_on([Lora("omnimuse/shapes/night"), Lora(str(other))])


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_pool_that_is_lost_in_mid_drawing_is_started_again_and_the_drawing_is_the_same(
    whole: Engine, group: Pools, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr("omnimuse.deploy.replica.SILENCE", 3.0)
    [seat] = group.group.seats[1]
    assert seat.replica is not None and seat.replica.pid is not None
    before, lost = seat.replica.pid, group.lost["denoise"]
    others = [group.group.seats[2][0].replica]
    pids = [each.pid for each in others if each is not None]
    asked = ask("a red circle", 5, num_outputs_per_prompt=2)
    told = Told(group, asked, at_step(2, lambda: os.kill(before, how)))
    second = Told(group, ask("a blue circle", 6))
    assert torch.equal(told.drawn(), expected(whole, asked))
    assert torch.equal(second.drawn(), expected(whole, ask("a blue circle", 6)))
    encoded = [e for e in told.events if isinstance(e, Progress) and e.stage == "init latents"]
    assert len(encoded) == 2, "what the pool before it had made was kept"
    assert group.lost["denoise"] > lost and not group.away
    assert seat.replica.pid != before and [each.pid for each in others if each is not None] == pids


@pytest.mark.costly(turns=3)
def test_a_pool_that_is_killed_while_it_reads_an_adapter_reads_it_again_and_all_are_drawn(
    whole: Engine, group: Pools, tmp_path: Path
) -> None:
    [seat] = group.group.seats[1]
    assert seat.replica is not None and seat.replica.pid is not None
    pid, killed, told = seat.replica.pid, list[int](), list[Told]()
    file = write(tmp_path / "large.safetensors", layers_of(Path(omnimuse.__file__).parent / "bundled/shapes"), rank=512)
    worn = ask("a red circle", 5, loras=[str(file)])

    def kill() -> None:
        """As soon as the file is seen in the hands of the process, which may be missed, or soon."""
        soon = time.monotonic() + 0.5
        while killed == [] and not over.is_set():
            if str(file) in Path(f"/proc/{pid}/maps").read_text() or time.monotonic() > soon:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    over, killer = threading.Event(), threading.Thread(target=kill)
    asked = ask("a blue circle", 6, num_inference_steps=30)
    other = Told(group, asked, at_step(2, lambda: (killer.start(), told.append(Told(group, worn)))))
    found = other.drawn(), told[0].drawn()
    over.set()
    killer.join()
    assert killed and torch.equal(found[0], expected(whole, asked)) and torch.equal(found[1], expected(whole, worn))
    wait_until(lambda: group.adapters[0] == 0 < group.adapters[1])  # nobody wears it any more


@pytest.mark.costly(turns=3)
def test_a_request_that_kills_its_pool_twice_is_not_tried_again_and_others_are_drawn(
    whole: Engine, group: Pools
) -> None:
    bad = Told(group, ask("a red heart"))
    good = Told(group, ask("a red circle"))
    end = bad.end()
    assert isinstance(end, Failed) and isinstance(end.error, PoisonError)
    assert torch.equal(good.drawn(), expected(whole, ask("a red circle"))), "it is not blamed for its company"


def test_no_pool_takes_on_more_than_its_window_however_many_wait(group: Pools) -> None:
    [seat] = group.group.seats[1]
    loads: list[int] = []
    told = [Told(group, ask("a red circle", n), lambda event: loads.append(seat.load)) for n in range(7)]
    for each in told:
        each.drawn()
    assert max(loads) == 2


def test_requests_go_to_the_replica_with_the_least_to_do(group: Pools) -> None:
    seats = group.group.seats[0]
    seen: list[list[int]] = []
    told = [Told(group, ask("a red circle", n), lambda event: seen.append([s.load for s in seats])) for n in range(7)]
    for each in told:
        each.drawn()
    assert any(min(loads) >= 1 for loads in seen), "one of two does not have all"


def test_pools_that_cannot_be_are_refused_before_anything_is_loaded() -> None:
    def refused(*pools: PoolConfig, **parts: object) -> str:
        with pytest.raises(ConfigError) as error:
            Pools(replace(CONFIG, deploy=DeployConfig(pools), **parts))  # type: ignore[arg-type]
        return str(error.value)

    assert "no pool holds the stage 'decode'" in refused(POOLS[0], POOLS[1])
    assert "did you mean 'denoise'" in refused(POOLS[0], PoolConfig("d", ("denoised", "decode")))
    assert "'pigeon' is not known" in refused(replace(POOLS[0], connector="pigeon"), *POOLS[1:])
