"""Tracks of one pipeline in two pools: what streams over an edge, piece by piece, and what holds it up."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Done, Event, Failed, Handed, Progress
from omnimuse.core.request import Door, Request
from omnimuse.engine.engine import Engine
from omnimuse.worker.handover import WINDOW
from omnimuse.worker.runner import Runner
from tests.carrying import carried
from tests.fakes import SPEC, ask, context
from tests.unit.pipeline.test_tracks import Both, engine, run

DOOR = Door.of(SPEC, {}, "fake")
SHORT = "a"
"""Adds little at every step, so that sums stay apart."""


def pool(part: range, tokens: int = 65536) -> Engine:
    schedule = ScheduleConfig(strict_slots=True, company="always", tick_tokens=tokens)
    runner = Runner(Both(context(), part), schedule)
    return Engine(runner, DOOR)


class Two:
    """The two tracks, cut behind stage number `cut`, with an edge between them that a test works by hand."""

    def __init__(self, cut: int = 2) -> None:
        self.first, self.second = pool(range(cut)), pool(range(cut, 3))
        self.events: list[Event] = []
        self.requests: dict[str, Request] = {}
        self.way: list[Handed] = []

    def submit(self, steps: int, seed: int, prompt: str = SHORT, outputs: int = 1) -> str:
        asked = ask(prompt, num_inference_steps=steps, seed=seed, num_outputs_per_prompt=outputs)
        request = DOOR.make_request(asked, 0.0, 1)
        self.requests[request.id] = request
        return self.first.submit(request)

    def tick(self, subject: Engine) -> None:
        if not subject.idle:
            events = subject.tick()
            self.way += [event for event in events if isinstance(event, Handed)]
            self.events += [event for event in events if not isinstance(event, Handed)]

    def carry(self, most: int = 100) -> None:
        for piece in self.way[:most]:
            self.second.hear(carried(piece))
            if piece.number == 0:
                self.second.submit(self.requests[piece.request_id])
            self.first.taken(piece.request_id)
        del self.way[:most]

    def finish(self) -> dict[str, Tensor]:
        while not (self.first.idle and self.second.idle and not self.way):
            self.tick(self.first)
            self.carry()
            self.tick(self.second)
        return {e.request_id: e.result.tensors["image"][0] for e in self.events if isinstance(e, Done)}


def alone(asks: Sequence[tuple[int, int]]) -> list[Tensor]:
    subject, found = engine(), []
    for steps, seed in asks:
        id_ = subject.submit(subject.make_request(ask(SHORT, num_inference_steps=steps, seed=seed)))
        found.append(run(subject, [])[id_])
    return found


@pytest.mark.parametrize("cut", [1, 2])
def test_tracks_in_two_pools_make_what_they_make_in_one(cut: int) -> None:
    asks = [(4, 1), (3, 2), (1, 3)]
    two = Two(cut)
    ids = [two.submit(*each) for each in asks]
    found = two.finish()
    for id_, expected in zip(ids, alone(asks), strict=True):
        assert torch.equal(found[id_], expected)
    for subject in (two.first, two.second):
        assert not subject.runner.states and not subject.runner.jobs and not subject.scheduler.entries


def test_an_output_that_has_left_before_another_has_begun_goes_with_it() -> None:
    two = Two()
    two.first = pool(range(2), tokens=1)  # one output after the other
    id_ = two.submit(4, 1, outputs=2)
    two.finish()
    [result] = [event.result for event in two.events if isinstance(event, Done)]
    assert result.request_id == id_
    for found, expected in zip(result.tensors["image"], alone([(4, 1), (4, 2)]), strict=True):
        assert torch.equal(found, expected)


def test_the_second_pool_goes_on_while_the_first_does() -> None:
    two = Two()
    two.submit(6, 3)
    two.finish()
    order = [(event.stage, event.step) for event in two.events if isinstance(event, Progress)]
    assert order.index(("hear", 1)) < order.index(("add", 4)), "it is heard before all is said"


def test_who_waits_for_another_pool_costs_no_tick_and_keeps_nobody_from_going_on() -> None:
    two = Two()
    slow, quick = two.submit(9, 1), two.submit(2, 2)
    two.tick(two.first)
    two.carry()
    while not two.second.idle:
        two.tick(two.second)
    assert two.second.rest() is None, "it waits for the other pool, not for a clock"
    assert slow in two.second.scheduler.entries
    found = two.finish()
    assert set(found) == {slow, quick}


def test_a_reader_that_takes_nothing_has_a_window_of_pieces_under_way_and_the_rest_in_one() -> None:
    two = Two()
    id_ = two.submit(40, 1)
    while not two.first.idle:
        two.tick(two.first)
    assert len(two.way) == WINDOW + 1 and two.way[-1].last
    assert id_ in two.finish()
    heard = [event.step for event in two.events if isinstance(event, Progress) and event.stage == "hear"]
    assert heard == list(range(1, 21)), "nothing is lost, and nothing comes twice"


def test_what_came_of_a_request_that_is_not_let_in_goes_though_there_is_nothing_else_to_do() -> None:
    two = Two()
    id_ = two.submit(9, 3)
    two.tick(two.first)
    two.second.hear(carried(two.way[0]))
    assert two.second.runner.hand._arrived
    two.second.forget(id_)
    two.tick(two.second)
    assert two.second.idle and not two.second.runner.hand._arrived


def test_a_failure_or_an_end_in_the_second_pool_leaves_nothing_there() -> None:
    two = Two()
    bad = two.submit(5, 1, "deaf")
    good = two.submit(5, 2)
    found = two.finish()
    assert [event.request_id for event in two.events if isinstance(event, Failed)] == [bad] and set(found) == {good}
    stopped = two.submit(9, 3)
    two.tick(two.first)
    two.carry()
    two.tick(two.second)
    for subject in (two.first, two.second):
        subject.cancel(stopped)
        two.tick(subject)
        assert not subject.runner.states and not subject.scheduler.entries
