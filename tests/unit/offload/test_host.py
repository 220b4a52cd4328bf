"""Blocks in two slots on a device whose copies and computations run beside each other, simulated in every order.

The real queues need an accelerator; what must be ordered can be tried here, by carrying out the two queues in steps of
random choice, each only where an event lets it.
"""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from omnimuse.core.errors import EngineDeadError
from omnimuse.offload.host import DeviceLanes, HostStore, Slot


@dataclass(eq=False)
class Mark:
    """An event: reached when its queue has come so far."""

    reached: bool = False


@dataclass
class SimulatedLanes:
    """Two queues of work that nobody has done yet; `heedless` ones do not wait for the event of that name."""

    heedless: str = ""
    copies: deque[Callable[[], bool]] = field(default_factory=deque)
    computations: deque[Callable[[], bool]] = field(default_factory=deque)
    marks: dict[tuple[str, Slot], Mark] = field(default_factory=dict)
    free: int = 2**30

    def pinned(self, size: int) -> Tensor:
        return torch.frombuffer(bytearray(size), dtype=torch.uint8)  # as with pages, there are none of no size

    def slot(self, size: int) -> Slot:
        return Slot(torch.zeros(size, dtype=torch.uint8))

    def fetch(self, waiting: Tensor) -> Tensor:
        return waiting.clone()

    def write(self, slot: Slot, waiting: Tensor) -> None:
        self._wait(self.copies, "read", slot)
        self.copies.append(lambda: bool(slot.content[: len(waiting)].copy_(waiting).numel()))
        self._mark(self.copies, "written", slot)

    def begin(self, slot: Slot) -> None:
        self._wait(self.computations, "written", slot)

    def end(self, slot: Slot) -> None:
        self._mark(self.computations, "read", slot)

    def room(self) -> int:
        return self.free

    def forget(self, slot: Slot) -> None:
        self.begin(slot)

    def close(self) -> None:
        """Nobody else needs to know."""

    def run(self, choose: random.Random) -> None:
        """Everything that was queued, in an order that keeps within the events."""
        while queues := [queue for queue in (self.copies, self.computations) if queue]:
            queue = choose.choice(queues)
            if queue[0]():
                queue.popleft()
            else:
                other = self.computations if queue is self.copies else self.copies
                assert other, "both queues wait for each other"

    def _mark(self, queue: deque[Callable[[], bool]], name: str, slot: Slot) -> None:
        mark = self.marks[name, slot] = Mark()

        def reach() -> bool:
            mark.reached = True
            return True

        queue.append(reach)

    def _wait(self, queue: deque[Callable[[], bool]], name: str, slot: Slot) -> None:
        mark = self.marks.get((name, slot))
        if mark is not None and name != self.heedless:
            queue.append(lambda: mark.reached)


def seen_by_blocks(lanes: SimulatedLanes, steps: int, choose: random.Random) -> tuple[list[int], list[int]]:
    """What each block finds in its slot, over some steps in which some are left out, and what it should find."""
    store, found, expected = HostStore(lanes), list[int](), list[int]()
    arenas = [store.add(size, lent=True) for size in (64, 16, 48)]
    for number, arena in enumerate(arenas):
        store.content(arena).fill_(number + 1)
    for _ in range(steps):
        blocks = [arena for arena in arenas if choose.random() < 0.8] or arenas
        for arena, following in zip(blocks, [*blocks[1:], arenas[0]], strict=True):
            with store.lend(arena) as content:
                store.expect(following)
                lanes.computations.append(lambda content=content: not found.extend(set(content.tolist())))  # type: ignore[misc]
                expected.append(arenas.index(arena) + 1)
    lanes.run(choose)
    return found, expected


@pytest.mark.parametrize("seed", range(40))
def test_every_block_finds_its_own_weights_in_whatever_order_the_device_works(seed: int) -> None:
    found, expected = seen_by_blocks(SimulatedLanes(), 6, random.Random(seed))
    assert found == expected


@pytest.mark.parametrize("event", ["read", "written"])
def test_without_either_event_a_block_would_find_another_s_weights(event: str) -> None:
    outcomes = [seen_by_blocks(SimulatedLanes(event), 6, random.Random(seed)) for seed in range(40)]
    assert any(found != expected for found, expected in outcomes)


def test_there_are_two_slots_of_the_largest_block_and_a_block_that_is_there_is_not_copied_again() -> None:
    lanes = SimulatedLanes()
    store = HostStore(lanes)
    store.add(4096, lent=False)
    arenas = [store.add(size, lent=True) for size in (64, 16)]
    for arena in (*arenas, *arenas):
        with store.lend(arena) as content:
            assert len(content) == (64, 16)[arenas.index(arena)]
    assert len({slot for _, slot in lanes.marks}) == 2
    assert {len(slot.content) for _, slot in lanes.marks} == {64}
    copies = sum(1 for work in lanes.copies if work.__name__ == "reach")
    assert copies == 2


class Crowded(SimulatedLanes):
    """A device that has room for one slot more at every other try."""

    tries = 0

    def slot(self, size: int) -> Slot:
        self.tries += 1
        if self.tries % 2 == 0:
            raise torch.OutOfMemoryError("no room for a slot")
        slot = super().slot(size)
        self.end(slot)  # as the lanes of a device do, who know it from then on
        return slot


def test_a_try_that_finds_no_room_for_the_second_slot_leaves_the_first_to_the_next_try() -> None:
    lanes = Crowded()
    store = HostStore(lanes)
    arena = store.add(64, lent=True)
    with pytest.raises(torch.OutOfMemoryError), store.lend(arena):
        pass
    with store.lend(arena):
        assert len({slot for _, slot in lanes.marks}) == 2, "memory of the first try is kept for nobody"


def test_what_blocks_took_turns_in_is_let_go_of_with_the_last_of_them_and_is_there_again_for_the_next() -> None:
    lanes = SimulatedLanes()
    store = HostStore(lanes)
    arenas = [store.add(8, lent=True) for _ in range(2)]
    slots = []
    for number, arena in enumerate(arenas):
        store.content(arena).fill_(number)
        with store.lend(arena) as content:
            slots.append(weakref.ref(content._base))
    lanes.run(random.Random(0))
    lanes.marks.clear()
    del content
    for arena in arenas:
        store.drop(arena)
    assert [slot() for slot in slots] == [None, None]
    with store.lend(arenas[1]) as content:
        lanes.run(random.Random(0))
        assert content.tolist() == [1] * 8


class Broken(SimulatedLanes):
    """A device that fails to copy once."""

    fails = False

    def write(self, slot: Slot, waiting: Tensor) -> None:
        if self.fails:
            self.fails = False
            slot.content.fill_(99)
            raise RuntimeError("a copy has failed")
        slot.content[: len(waiting)].copy_(waiting)


@pytest.mark.parametrize("first", [0, 2])
def test_a_slot_whose_copy_failed_has_neither_what_it_had_nor_what_it_was_to_have(first: int) -> None:
    lanes = Broken()
    store = HostStore(lanes)
    arenas = [store.add(8, lent=True) for _ in range(3)]
    for number, arena in enumerate(arenas):
        store.content(arena).fill_(number)
    for arena in arenas[:2]:
        with store.lend(arena):
            pass
    lanes.fails = True
    with pytest.raises(RuntimeError), store.lend(arenas[2]):
        pass
    with store.lend(arenas[first]) as content:
        assert content.tolist() == [first] * 8


def test_a_component_that_comes_ahead_of_its_turn_is_whole_before_it_computes() -> None:
    found: list[int] = []
    for seed in range(20):
        lanes = SimulatedLanes()
        store = HostStore(lanes)
        arena = store.add(64, lent=False)
        store.content(arena).fill_(7)
        store.read_ahead(arena)
        store.read_ahead(arena)
        assert sum(work.__name__ == "reach" for work in lanes.copies) == 1, "copied once"
        content = store.fetch(arena)
        lanes.computations.append(lambda content=content: not found.extend(set(content.tolist())))  # type: ignore[misc]
        lanes.run(random.Random(seed))
        assert store.fetch(arena) is not content, "what is in was handed out, and is another's"
    assert found == [7] * 20


def test_nothing_comes_ahead_where_there_is_no_room_and_what_did_can_be_dropped() -> None:
    lanes = SimulatedLanes(free=127)
    store = HostStore(lanes)
    arena = store.add(64, lent=False)
    store.read_ahead(arena)
    assert not lanes.copies
    lanes.free = 128
    store.read_ahead(arena)
    assert lanes.copies
    store.drop(arena)
    lanes.free = 0
    store.read_ahead(arena)
    assert sum(work.__name__ == "reach" for work in lanes.copies) == 1


def test_what_comes_ahead_finds_no_room_in_one_piece_and_comes_in_its_turn() -> None:
    store = HostStore(Crowded())
    arenas = [store.add(64, lent=False) for _ in range(2)]
    store.content(arenas[1]).fill_(7)
    for arena in arenas:
        store.read_ahead(arena)
    assert store.fetch(arenas[1]).tolist() == [7] * 64


class Remembering(SimulatedLanes):
    """Lanes that know a slot until they are to forget it, or all, as those of a device do."""

    def __init__(self) -> None:
        super().__init__()
        self.there = WeakSet[Slot]()

    def slot(self, size: int) -> Slot:
        slot = super().slot(size)
        self.there.add(slot)
        return slot

    def forget(self, slot: Slot) -> None:
        super().forget(slot)
        self.marks = {key: mark for key, mark in self.marks.items() if key[1] is not slot}

    def close(self) -> None:
        self.marks.clear()


def test_memory_of_what_is_dropped_is_free_and_all_of_it_when_the_store_closes() -> None:
    lanes = Remembering()
    store = HostStore(lanes)
    component, block, empty = store.add(64, lent=False), store.add(16, lent=True), store.add(0, lent=True)
    for _ in range(2):
        store.read_ahead(component)
        for arena in (block, empty):
            with store.lend(arena):
                pass
        lanes.run(random.Random(1))
        assert len(lanes.there) == 3
        store.drop(component)
        lanes.run(random.Random(1))
        assert len(lanes.there) == 2
    store.read_ahead(component)
    lanes.run(random.Random(1))
    store.close()
    assert not lanes.there


def test_a_closed_store_says_so() -> None:
    store = HostStore(SimulatedLanes())
    arena = store.add(8, lent=True)
    store.close()
    with pytest.raises(EngineDeadError, match="close"):
        store.fetch(arena)
    with pytest.raises(EngineDeadError, match="close"), store.lend(arena):
        pass


def test_what_torch_keeps_of_a_device_and_nobody_uses_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 bytes: 10 are free, 20 are torch's, of which tensors have 12."""
    for name, value in {"get_memory_info": (10, 80), "memory_reserved": 20, "memory_allocated": 12}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda device, value=value: value)
    assert DeviceLanes(torch.device("cpu")).room() == 10 + 8
