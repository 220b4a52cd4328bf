"""What never fits into one of several pools is refused before anything is computed: as in one process, when a pool was
lost meanwhile, too, and where one has several ranks.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
import torch

from omnimuse.core.config import HostConfig, ParallelConfig
from omnimuse.core.errors import DeadlineError, OmnimuseError, PoisonError, RequestCancelled, RequestError
from omnimuse.core.output import Done, Failed
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.deploy.connectors import Blob
from omnimuse.deploy.frames import AnyFrame, Close, Share, Try
from omnimuse.deploy.group import Seat
from omnimuse.deploy.pools import Pools
from omnimuse.deploy.station import Station
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.families import ANSWERERS
from tests.dist.test_pools import CONFIG, POOLS, Told, ask, at_step, expected
from tests.invariants import test_answering
from tests.invariants.conftest import drain, outputs, submit
from tests.once import Once
from tests.waiting import wait_until

pytestmark = [pytest.mark.dist, pytest.mark.costly("room in pools"), pytest.mark.timeout(400)]

ROOM = 40 * 2**20
TIGHT = replace(CONFIG, host=HostConfig(threads=1, room=ROOM))


def large(side: int = 1024, seed: int = 7) -> Ask:
    return ask("a red circle", seed, width=side, height=side, num_inference_steps=1)


def refused(pools: Pools, asked: Ask) -> str:
    """What is said of one, nothing of which is computed."""
    told = Told(pools, asked)
    end = told.end()
    assert isinstance(end, Failed) and isinstance(end.error, RequestError), end
    assert told.events == [end]
    return str(end.error)


def figures(said: str) -> tuple[float, int]:
    """What it takes at the least, in MiB, and the nearest side."""
    found = re.search(r"takes ([\d.]+) MiB at the least .*; the nearest size that may fit is (\d+)x\d+", said)
    assert found, said
    return float(found[1]), int(found[2])


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    """The same model in one process."""
    engine = start(TIGHT)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def group() -> Iterator[Pools]:
    """Three pools, the first of which has two replicas."""
    with closing(Pools(replace(TIGHT, deploy=DeployConfig(POOLS)))) as pools:
        yield pools


@pytest.fixture
def tried(group: Pools, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pools in which small requests are tried from now on."""
    names: list[str] = []
    watch(group, monkeypatch, lambda seat: names.append(seat.name))
    return names


def watch(group: Pools, monkeypatch: pytest.MonkeyPatch, act: Callable[[Seat], object]) -> None:
    """Do `act` with each seat in which small requests are tried."""

    def watched(seat: Seat, send: Callable[[AnyFrame, Blob | None], None], frame: AnyFrame, *blob: Blob | None) -> None:
        send(frame, *blob)
        if isinstance(frame, Try):
            act(seat)

    for seat in (seat for seats in group.group.seats for seat in seats):
        monkeypatch.setattr(seat.link, "send", partial(watched, seat, seat.link.send))


def local(whole: Engine, asked: Ask) -> str:
    """What one process says of it."""
    try:
        [id_] = submit(whole, asked)
        outputs(drain(whole), id_)
    except OmnimuseError as error:
        return str(error)
    raise AssertionError("it is drawn")


def test_what_never_fits_is_refused_as_by_one_process_and_others_are_drawn_meanwhile(
    whole: Engine, group: Pools, tried: list[str]
) -> None:
    [id_] = submit(whole, ask("a blue star", 8))
    alone = outputs(drain(whole), id_)
    beside = Told(group, ask("a blue star", 8))
    said = refused(group, large())
    assert torch.equal(beside.drawn(), alone)
    (figure, side), (expected, nearest) = figures(said), figures(local(whole, large()))
    assert side == nearest and 0.9 * expected < figure <= expected, "no pool has all that one process has"
    assert tried == 3 * ["encode-0", "encode-1", "denoise-0", "decode-0"], "for all ways, and no more"
    assert refused(group, large(seed=8)) == said
    assert len(tried) == 12, "it is known now"
    fits = Told(group, large(side)).end()
    assert isinstance(fits, Done)
    [id_] = submit(whole, large(side))
    assert torch.equal(fits.result.output, outputs(drain(whole), id_))
    assert fits.result.said == ("decoded in tiles of 128 pixels a side, as there is no room for more at once",)


def test_who_is_known_is_drawn_while_small_ones_of_another_kind_are_tried(
    group: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = large(figures(refused(group, large()))[1])
    hear, answers = group._foretelling.hear, list[tuple[Seat, AnyFrame, Blob | None]]()

    def hold_back(seat: Seat, frame: AnyFrame, blob: Blob | None) -> None:
        if isinstance(frame, Close):
            answers.append((seat, frame, blob))
        else:
            hear(seat, frame, blob)

    monkeypatch.setattr(group._foretelling, "hear", hold_back)
    unknown = Told(group, replace(large(), params=replace(large().params, output_type="latent")))
    assert isinstance(Told(group, known).end(), Done)
    assert not unknown.events
    monkeypatch.undo()
    for answer in answers:
        group._loop.call_soon_threadsafe(hear, *answer)
    assert isinstance(unknown.end(), Done | Failed)


@pytest.fixture(scope="module")
def inside() -> Iterator[Pools]:
    """Three pools in this process."""
    pools = tuple(replace(pool, replicas=1, connector="local") for pool in POOLS)
    with closing(Pools(replace(TIGHT, deploy=DeployConfig(pools)))) as group:
        yield group


def within(pools: Pools) -> list[tuple[Station, Engine]]:
    """Who serves each of them, and its engine."""
    engines = [seat.engine.engine for seats in pools.group.seats for seat in seats if seat.engine is not None]
    return [(engine.moved.__self__, engine) for engine in engines]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("pool", "why"), [(0, "cancelled"), (1, "cancelled"), (2, "cancelled"), (1, "late")])
def test_small_ones_are_drawn_in_pools_no_longer_than_somebody_waits_for_them(
    inside: Pools, monkeypatch: pytest.MonkeyPatch, pool: int, why: str
) -> None:
    stations, request, steps = within(inside), inside.make_request(large()), list[int]()
    station, engine = stations[pool]
    before = engine.foretelling.kinds
    for _, each in stations:
        each.foretelling._known.clear()
    if why == "late":
        request = replace(request, deadline=time.monotonic() + 20)

    def moved() -> None:
        steps.append(1)
        if why == "cancelled":
            inside.cancel(request.id)
        wait_until(lambda: not station._wanted)

    monkeypatch.setattr(engine, "moved", moved)
    end = Told(inside, request).end()
    assert isinstance(end, Failed) and isinstance(end.error, DeadlineError if why == "late" else RequestCancelled)
    wait_until(lambda: not any(each._wanted or each._tried for each, _ in stations) and engine.idle)
    assert len(steps) == 1 and engine.foretelling.kinds == before and not engine.runner.hand._arrived
    monkeypatch.undo()
    again = Told(inside, replace(request, id="again", deadline=None)).end()
    assert isinstance(again, Failed) and isinstance(again.error, RequestError)
    assert engine.foretelling.kinds > before, "the next one of its kind is tried for"


def test_pools_of_one_machine_share_what_all_of_them_leave_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names, sent = ("encode", "denoise", "decode"), list[AnyFrame]()
    near = replace(POOLS[0], replicas=1), replace(POOLS[1], connector="local"), POOLS[2]
    config = replace(CONFIG, deploy=DeployConfig(near))
    monkeypatch.setattr("omnimuse.worker.place.memory", lambda: 2**36)
    for module in ("worker.place", "deploy.group"):  # of this process
        monkeypatch.setattr(f"omnimuse.{module}.resident", lambda: 2**28)
    with closing(Pools(config)) as group:
        seats = [seat for seats in group.group.seats for seat in seats]
        assert [seat.name.partition("-")[0] for seat in seats] == list(names)
        [held] = [seat.held for seat in seats if seat.engine is None]
        room = (2**36 - held - 2**28) // 3
        wait_until(lambda: all(engine.space.room == room for _, engine in within(group)))  # they obey between two ticks
        assert held > 2**26 and [engine.space.room for _, engine in within(group)] == [room, room]
        share, join, heard = group.group._share, group.group._ears.joined, list[AnyFrame]()

        def shared(seat: Seat) -> None:
            assert seat.link is not None
            send = seat.link.send

            def watched(frame: AnyFrame, blob: Blob | None = None) -> None:
                heard.append(frame)
                send(frame, blob)

            monkeypatch.setattr(seat.link, "send", watched)
            share(seat)

        def joined(seat: Seat) -> None:
            sent.extend(heard)
            join(seat)

        monkeypatch.setattr(group.group, "_share", shared)
        monkeypatch.setattr(group.group, "_ears", replace(group.group._ears, joined=joined))
        kill(seats[-1])
        assert isinstance(Told(group, ask("a red circle")).end(), Done)
        [again] = sent  # before anything else
        assert isinstance(again, Share) and (again.beside, again.among) == (2**28, 3)


@pytest.mark.costly("room in pools, one of which is lost")
@pytest.mark.parametrize("pool", [1, 2])
def test_a_pool_that_comes_back_knows_it_again(group: Pools, pool: int) -> None:
    said = refused(group, large())
    [seat] = group.group.seats[pool]
    kill(seat)
    assert refused(group, large()) == said
    assert isinstance(Told(group, large(figures(said)[1])).end(), Done)


@pytest.mark.costly("room in pools, one of which is lost")
@pytest.mark.parametrize("times", [1, 2])
def test_a_pool_that_is_lost_while_small_ones_are_tried_in_it_tries_them_once_more(
    group: Pools, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    said, join, pids = refused(group, large()), group._joined, list[int]()

    def joined(seat: Seat) -> None:
        watch(
            group, monkeypatch, lambda seat: pids.append(kill(seat)) if seat.pool == 1 and len(pids) < times else None
        )
        join(seat)

    monkeypatch.setattr(group.group, "_ears", replace(group.group._ears, joined=joined))
    kill(group.group.seats[1][0])  # then it knows nothing
    end = Told(group, large()).end()
    assert isinstance(end, Failed) and len(pids) == times
    assert isinstance(end.error, PoisonError) if times == 2 else str(end.error) == said
    monkeypatch.undo()
    assert refused(group, large()) == said


@pytest.mark.costly("room in pools, one of which is lost")
def test_who_is_drawn_where_small_ones_of_another_end_the_pool_twice_is_not_to_blame(
    whole: Engine, group: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    join, pids, told = group._joined, list[int](), list[Told]()

    def end(seat: Seat) -> None:
        if seat.pool == 1 and len(pids) < 2:
            pids.append(kill(seat))

    def joined(seat: Seat) -> None:
        watch(group, monkeypatch, end)
        join(seat)

    monkeypatch.setattr(group.group, "_ears", replace(group.group._ears, joined=joined))
    kill(group.group.seats[1][0])  # then it knows nothing
    asked = ask("a red circle", 5, num_inference_steps=20)
    good = Told(group, asked, at_step(2, lambda: told.append(Told(group, large()))))
    assert torch.equal(good.drawn(), expected(whole, asked))
    last = told[0].end()
    assert isinstance(last, Failed) and isinstance(last.error, PoisonError) and len(pids) == 2
    monkeypatch.undo()
    assert not any(seat.streams or seat.holder for seats in group.group.seats for seat in seats)
    assert isinstance(Told(group, asked).end(), Done)


def kill(seat: Seat) -> int:
    """The process that is killed."""
    assert seat.replica is not None and seat.replica.pid is not None
    pid = seat.replica.pid
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.costly
def test_a_pool_of_two_ranks_refuses_what_never_fits() -> None:
    before = replace(POOLS[0], replicas=1)
    pools = (before, replace(POOLS[1], parallel=ParallelConfig(tensor=2)), replace(POOLS[2], connector="local"))
    config = replace(TIGHT, host=HostConfig(threads=1, room=ROOM // 2), deploy=DeployConfig(pools))
    with closing(Pools(config)) as group:
        said = refused(group, large())
        assert isinstance(Told(group, large(figures(said)[1])).end(), Done)
        assert refused(group, large(seed=8)) == said


@pytest.mark.costly
def test_an_answer_aloud_that_never_fits_is_refused_before_anybody_thinks(once: Once) -> None:
    answerer = ANSWERERS[0]
    config = test_answering.config(once.folder(answerer.name, answerer.build))
    config = replace(config, host=replace(config.host, room=800_000))
    sound, engine = PoolConfig("sound", ("*",)), start(config)
    pools = (replace(sound, name="think", stages=(), tracks=(0,)), replace(sound, name="talk", stages=(), tracks=(1,)))
    asked = test_answering.ask(0, max_tokens=2000, voice_tokens=2000)
    with closing(Pools(replace(config, deploy=DeployConfig((*pools, sound))))) as group:
        said = refused(group, asked)
        most, alone = (
            re.search(r"the most tokens that may fit are (\d+)", each) for each in (said, local(engine, asked))
        )
        assert most and alone and int(most[1]) >= int(alone[1]) > 64, "no pool has all that one process has"
        assert refused(group, asked) == said
        fits = test_answering.ask(0, max_tokens=int(most[1]), voice_tokens=int(most[1]))
        assert isinstance(Told(group, fits).end(), Done)
    engine.close()
