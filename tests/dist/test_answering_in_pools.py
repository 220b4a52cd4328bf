"""A model that sees, hears, writes and speaks, its tracks in pools: what it answers, and when."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from omnimuse.core.errors import ModelError
from omnimuse.core.output import Chunk, Done, Event, Failed, Progress, Result
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.models import REGISTRY
from omnimuse.models.qwen3_omni.pipeline import Qwen3OmniPipeline
from tests.checkpoints.families import ANSWERERS
from tests.checkpoints.fixtures import folder_of_each
from tests.invariants.conftest import drain, submit
from tests.invariants.test_answering import TALKS, ask, config

pytestmark = [pytest.mark.costly("answering in pools"), pytest.mark.timeout(300)]


STREAMING = [answerer for answerer in ANSWERERS if answerer.meanwhile]
"""Those whose sound comes piece by piece, before all is written."""
piece_by_piece = pytest.mark.parametrize("folder", STREAMING, ids=lambda answerer: answerer.name, indirect=True)


LONG = {"min_tokens": 40, "max_tokens": 40}
"""Of an answer: more is said than goes over an edge before any of it is taken."""
folder = folder_of_each(ANSWERERS)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Engine]:
    """The same model in one process."""
    engine = start(config(folder))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pools(folder: Path) -> Iterator[Pools]:
    tracks = range(len(REGISTRY.pipeline(Checkpoint(folder).arch).tracks))
    placed = (
        PoolConfig("think", tracks=(0,)),
        PoolConfig("talk", tracks=(1,), connector="tcp"),
        PoolConfig("sound", tracks=tuple(tracks[2:]), connector="local"),
    )
    made = Pools(replace(config(folder), deploy=DeployConfig(placed)))
    yield made
    assert not any(seat.streams for seats in made.group.seats for seat in seats), "nothing is left of what has ended"
    made.close()


def expected(whole: Engine, number: int, **choices: Any) -> list[Event]:
    [id_] = submit(whole, ask(number, **choices))
    return [event for event in drain(whole) if event.request_id == id_]


def told(pools: Pools, number: int, hear: Callable[[Event], None] = lambda event: None, **choices: Any) -> list[Event]:
    """The events of one request, which it ends with what it makes."""
    queue: SimpleQueue[Event] = SimpleQueue()

    def listen(event: Event) -> None:
        hear(event)
        queue.put(event)

    pools.submit(pools.make_request(ask(number, **choices)), listen)
    events = [queue.get(timeout=120)]
    while not isinstance(events[-1], Done | Failed):
        events.append(queue.get(timeout=120))
    return events


def result(events: list[Event]) -> Result:
    end = events[-1]
    assert isinstance(end, Done), end
    return end.result


def spelt(events: list[Event]) -> str:
    return "".join(str(event.data) for event in events if isinstance(event, Chunk) and event.medium == "text")


def check(events: list[Event], theirs: list[Event], aloud: bool = True) -> None:
    """That what was made is what one process makes, and that its pieces are the whole."""
    ours, other = result(events), result(theirs)
    assert [note.tokens for note in ours.written] == [note.tokens for note in other.written]
    assert spelt(events) == spelt(theirs)
    if aloud:
        [sound] = ours.tensors["audio"]
        assert torch.equal(sound, other.tensors["audio"][0])
        pieces = [event.data for event in events if isinstance(event, Chunk) and event.medium == "audio"]
        assert torch.equal(torch.cat([torch.from_numpy(piece) for piece in pieces], dim=1), sound)


@pytest.mark.shows("pools", "streams")
@pytest.mark.parametrize("number", range(len(TALKS)))
def test_three_pools_answer_as_one_process_does_to_the_byte(whole: Engine, pools: Pools, number: int) -> None:
    check(told(pools, number), expected(whole, number))


def test_an_answer_in_text_alone_needs_no_talker(whole: Engine, pools: Pools) -> None:
    events = told(pools, 1, modalities=("text",))
    check(events, expected(whole, 1, modalities=("text",)), aloud=False)
    assert not any(isinstance(event, Chunk) and event.medium == "audio" for event in events)


@piece_by_piece
def test_it_is_heard_while_it_still_thinks(pools: Pools) -> None:
    events = told(pools, 0, min_tokens=200, max_tokens=200)
    wrote = [at for at, event in enumerate(events) if isinstance(event, Progress) and event.stage == "generate"]
    heard = [at for at, event in enumerate(events) if isinstance(event, Chunk) and event.medium == "audio"]
    assert heard[0] < wrote[-1]


@piece_by_piece
def test_a_talker_that_is_killed_in_mid_word_is_started_again_and_nothing_is_told_twice(
    whole: Engine, pools: Pools
) -> None:
    [seat] = pools.group.seats[1]
    killed: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "talk" and event.step >= 3 and not killed:
            assert seat.replica is not None and seat.replica.pid is not None
            killed.append(seat.replica.pid)
            os.kill(seat.replica.pid, signal.SIGKILL)

    check(told(pools, 1, hear), expected(whole, 1))
    assert killed and seat.replica is not None and seat.replica.pid not in killed


@pytest.mark.parametrize("kept_from", ["busy", "killed"])
def test_what_is_said_waits_for_its_decoder_also_when_all_is_thought(
    whole: Engine, folder: Path, kept_from: str
) -> None:
    """It has no room, for somebody else speaks there, or its process ends: pieces that wait are not lost meanwhile."""
    tracks = range(len(REGISTRY.pipeline(Checkpoint(folder).arch).tracks))
    sound = PoolConfig("sound", tracks=tuple(tracks[2:]), window=1)
    placed = (
        PoolConfig("say", tracks=(0,), connector="local"),
        PoolConfig("talk", tracks=(1,), connector="local"),
        sound,
    )
    with closing(Pools(replace(config(folder), deploy=DeployConfig(placed)))) as made:
        [seat] = made.group.seats[2]
        ends, killed = [SimpleQueue[Event](), SimpleQueue[Event]()], list[int]()

        def kill(event: Event) -> None:
            if kept_from == "killed" and isinstance(event, Progress) and event.stage == "talk" and not killed:
                assert seat.replica is not None and seat.replica.pid is not None
                killed.append(seat.replica.pid)
                os.kill(seat.replica.pid, signal.SIGKILL)

        def listen(events: SimpleQueue[Event], event: Event) -> None:
            kill(event)
            events.put(event)

        for number, events in enumerate(ends):
            made.submit(made.make_request(ask(number, **LONG)), partial(listen, events))
        for number, events in enumerate(ends):
            heard = [events.get(timeout=60)]
            while not isinstance(heard[-1], Done | Failed):
                heard.append(events.get(timeout=60))
            check(heard, expected(whole, number, **LONG))
        assert bool(killed) == (kept_from == "killed")


@piece_by_piece
def test_what_cannot_travel_ends_its_request_alone_and_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qwen3OmniPipeline, "records", ())
    here = (PoolConfig("think", tracks=(0,), connector="local"), PoolConfig("say", tracks=(1, 2), connector="local"))
    with closing(Pools(replace(config(folder), deploy=DeployConfig(here)))) as made:
        for _ in range(2):
            end = told(made, 0)[-1]
            assert isinstance(end, Failed) and isinstance(end.error, ModelError)
            assert "a slot that holds Overheard cannot go to another pool" in str(end.error)
