"""What was handed out is counted as long as anybody has any of it, on the CPU, and others wait for its room."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import Config, ModelConfig, ScheduleConfig
from omnimuse.core.output import Result
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.given import Given
from omnimuse.engine.local import finished, start
from omnimuse.worker.place import most_allocated
from tests.invariants.conftest import tick
from tests.unit.worker.test_room import LARGE, known_to, small_tries  # noqa: F401  a fixture

CPU = torch.device("cpu")


def result(*made: Tensor | list[Tensor | None]) -> Result:
    return Result("id", "a fox", DiffusionParams(), tensors=dict(zip(("image", "audio"), made, strict=False)))


def test_it_is_counted_until_nobody_has_a_part_of_it() -> None:
    given = Given(CPU)
    given.add(made := result(torch.zeros(3, 100)))
    assert given.bytes == 1200
    row, numbers = made.tensors["image"][1], made.tensors["image"][2].numpy()
    del made
    assert given.bytes == 1200
    del row
    assert given.bytes == 1200
    del numbers
    assert given.bytes == 0


def test_what_several_results_or_media_share_counts_once_and_what_is_not_there_not_at_all() -> None:
    given, pictures = Given(CPU), torch.zeros(2, 100)
    one, other = result(pictures[:1], [pictures[1], None, torch.zeros(10)]), result(pictures)
    given.add(one)
    given.add(other)
    assert given.bytes == 800 + 40
    del one, other
    assert given.bytes == 800
    del pictures
    assert given.bytes == 0


def test_on_another_device_it_waits_elsewhere() -> None:
    given = Given(torch.device("cuda"))
    made = result(torch.zeros(100))
    given.add(made)
    assert given.bytes == 0


def started() -> Engine:
    """Whoever has room shares forwards."""
    return start(
        Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always"))
    )


@pytest.mark.costly(turns=3)
def test_what_was_handed_out_is_room_that_others_do_not_have_until_nobody_has_it() -> None:
    engine = started()
    request, need = known_to(engine)
    room, held, forwards = need.times(2).most, list[Result](), list[int]()
    before = replace(request, id="before", params=replace(LARGE, num_outputs_per_prompt=6))

    def draw() -> None:
        engine.space = replace(engine.space, room=2**40)
        held.extend(finished(engine, before))
        engine.space = replace(engine.space, room=room)
        for _ in range(2):
            engine.runner.forwards.count = 0
            finished(engine, *(replace(request, id=id_) for id_ in ("one", "other")))
            forwards.append(engine.runner.forwards.count)
            held.clear()

    engine.runner.memo.clear()  # torch tells of no block that was there before
    took = most_allocated(torch.device("cpu"), draw)
    assert forwards == [4, 2], "one after the other, and then together"
    assert took is not None and max(took.values()) < room * 1.02
    engine.close()


def test_one_alone_is_let_in_and_judged_by_the_whole_room_though_somebody_keeps_what_was_handed_out() -> None:
    engine = started()
    request, need = known_to(engine)
    engine.space = replace(engine.space, room=need.most)
    held = [finished(engine, replace(request, id=str(number)))[0] for number in range(3)]
    assert engine.given.bytes == sum(each.output.nbytes for each in held)
    assert not any(each.said for each in held), "it fits as a whole"
    engine.close()


def test_small_ones_are_drawn_where_what_was_handed_out_may_leave_no_room_for_several() -> None:
    engine = started()
    request = engine.make_request(Ask("a red circle", LARGE))
    guess = engine.foretelling.extent.guess(request)
    engine.space = replace(engine.space, room=guess.times(2).most)
    held = finished(engine, request)
    for id_ in ("one", "other"):
        engine.submit(replace(request, id=id_))
    assert not engine.foretelling.kinds
    tick(engine)
    assert engine.foretelling.kinds == 1 and held
    engine.close()
