"""Pieces that are on their way to main memory end up in their places, and nobody waits for them but the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omnimuse.pipeline.arrival import Collected, send
from omnimuse.pipeline.state import park


class Made(TorchDispatchMode):
    """Which operations have made tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.tensors.append(str(func))
        return found


class Coming:
    """A tensor that arrives when it is let in, or waited for."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.arrived = False
        self.waited = False

    def here(self) -> bool:
        return self.arrived

    def wait(self) -> Tensor:
        self.waited = not self.arrived
        return self.tensor


@pytest.fixture
def sent() -> list[Coming]:
    return []


@pytest.fixture
def collected(sent: list[Coming]) -> Collected:
    """Three places; what is sent there is in `sent`."""

    def slowly(tensor: Tensor) -> Coming:
        sent.append(Coming(tensor))
        return sent[-1]

    return Collected((3,), slowly)


def put(collected: Collected, at: int) -> None:
    collected.put((slice(at, at + 1),), torch.full((1,), float(at)))


def test_a_tensor_in_main_memory_has_arrived() -> None:
    tensor = torch.ones(2)
    arrival = send(tensor)
    assert arrival.here()
    assert arrival.wait() is tensor


def test_nothing_waits_until_the_whole_is_asked_for(collected: Collected, sent: list[Coming]) -> None:
    for at in range(3):
        put(collected, at)
    assert not any(coming.waited for coming in sent)
    assert collected.finished().tolist() == [0.0, 1.0, 2.0]
    assert all(coming.waited for coming in sent)


def test_what_has_arrived_is_let_go_when_the_next_is_sent(collected: Collected, sent: list[Coming]) -> None:
    put(collected, 0)
    sent[0].arrived = True
    put(collected, 1)
    assert collected.tensor[0] == 0.0
    assert collected.finished()[:2].tolist() == [0.0, 1.0]
    assert [coming.waited for coming in sent] == [False, True]


def test_a_piece_that_is_the_whole_is_taken_as_it_is_and_one_that_keeps_more_alive_is_copied() -> None:
    for piece, taken in ((torch.arange(3.0), True), (torch.arange(4.0)[1:], False), (torch.arange(3), False)):
        collected = Collected((3,))
        collected.put((slice(0, 3),), piece)
        assert collected.finished().tolist() == piece.tolist()
        assert (collected.finished() is piece) == taken


def test_frames_that_follow_each_other_take_no_more_memory_before_the_last_has_come() -> None:
    frames, collected = [torch.full((count, 2), float(count)) for count in (1, 2, 3)], Collected((6, 2))
    with Made() as made:
        for frame, start in zip(frames, (0, 1, 3), strict=True):
            collected.put((slice(start, start + len(frame)), slice(0, 2)), frame)
    assert made.tensors == []
    assert torch.equal(collected.finished(), torch.cat(frames))


def test_a_piece_out_of_its_turn_is_put_into_its_place_and_so_is_all_that_comes_behind_it() -> None:
    collected = Collected((3, 2))
    for start, side, value in (
        (0, slice(0, 2), 1.0),
        (1, slice(0, 1), 2.0),
        (1, slice(1, 2), 3.0),
        (2, slice(0, 2), 4.0),
    ):
        collected.put((slice(start, start + 1), side), torch.full((1, side.stop - side.start), value))
    assert collected.finished().tolist() == [[1.0, 1.0], [2.0, 3.0], [4.0, 4.0]]


def test_it_is_no_part_of_what_is_moved_when_its_state_is_parked(collected: Collected) -> None:
    assert park({"video": collected})["video"] is collected
