"""What a pool takes over from the one before it, and hands over to the next.

A runner has one `Hand`. A request leaves when the stages of its part are done; where the next part begins with slots
that grow, it leaves as soon as those are there, and what they grow by follows piece by piece. Knows nothing of
processes: who carries a `Handover` is somebody else's affair (`deploy/`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from omnimuse.ar.kv import KV
from omnimuse.core.output import Handed, Note
from omnimuse.core.request import Request
from omnimuse.parallel.remembered import part_of, whole_of
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.state import State, changed
from omnimuse.pipeline.stream import Stream
from omnimuse.worker.packing import DTYPES, name_of, unpack
from omnimuse.worker.plan import Heard
from omnimuse.worker.took import Took

WINDOW = 8
"""Pieces of a stream that may be under way."""


@dataclass
class Carried:
    """What one output takes along: slots (of those that grow, what is new), its random numbers, and what its stages
    have to tell.
    """

    slots: dict[str, Any] = field(default_factory=dict)
    generator: bytes = b""
    notes: dict[str, Note] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    timed: dict[str, float] = field(default_factory=dict)


@dataclass
class Handover:
    """What a request takes along, by output, and what it took so far; nothing comes after the `last`. Networks have
    computed in `dtype` there, a name of torch's.
    """

    outputs: dict[int, Carried] = field(default_factory=dict)
    spent: Took = field(default_factory=Took)
    last: bool = False
    dtype: str = ""

    def plain(self) -> dict[str, Any]:
        """As dicts and lists, to be packed."""
        outputs = {number: dict(vars(carried)) for number, carried in self.outputs.items()}
        return {"outputs": outputs, "spent": vars(self.spent), "last": self.last, "dtype": self.dtype}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Handover:
        """What `plain` gave."""
        outputs = {number: Carried(**told) for number, told in plain["outputs"].items()}
        return Handover(outputs, Took(**plain["spent"]), plain["last"], plain["dtype"])


@dataclass
class Leaving:
    """How far a request has left: how many items of each stream were told, and `flight` pieces that nobody has taken
    yet.
    """

    told: dict[tuple[int, str], int] = field(default_factory=dict)
    pieces: int = 0
    flight: int = 0


class Hand:
    """The two ends of a part. All calls come from the thread that executes plans, between ticks or within one."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.first = pipeline.part.start == 0
        self.last = pipeline.part.stop == len(pipeline.stages)
        self.all = self.first and self.last
        leaving = pipeline.leaving
        self._streams = tuple(s for s, writer in leaving.items() if s in pipeline.stages[writer].streams)
        self._computed = {slot for stage in pipeline.stages if stage.computed for slot in stage.writes}
        self._arrived: dict[str, Handover] = {}
        self._leaving: dict[str, Leaving] = {}

    # -- in --------------------------------------------------------------------------------------------------------

    def hear(self, heard: Heard, states: Collection[State]) -> None:
        """More of a request has come; `states` are its states, if it has begun."""
        ctx, records = self._pipeline.ctx, self._pipeline.records
        piece = Handover.of(unpack(heard.head, memoryview(heard.data), ctx.device, records))
        known = self._arrived.setdefault(heard.request_id, Handover())
        known.spent = known.spent.then(piece.spent)
        known.last = piece.last
        begun = {state.output: state for state in states}
        for number, more in piece.outputs.items():
            carried = known.outputs.setdefault(number, Carried())
            carried.generator = carried.generator or more.generator
            carried.notes |= more.notes
            carried.said += more.said
            carried.timed |= more.timed
            for name, came in more.slots.items():
                value = self._formatted(came, piece.dtype) if name in self._computed else came
                here = part_of(value, ctx.mesh) if isinstance(value, KV) else value
                _add(carried.slots, begun.get(number), name, here)

    def _formatted(self, value: Any, dtype: str) -> Any:
        """What networks have computed in `dtype`, in the number format of those that go on from there."""
        before, now = DTYPES[dtype], self._pipeline.ctx.dtype
        if before == now:
            return value
        return changed(value, lambda part: part.to(now) if part.data.dtype == before else part, exact=False)

    def begin(self, states: Iterable[State]) -> None:
        """Fill fresh states with what has come."""
        for state in states if not self.first else ():
            carried = self._arrived[state.request.id].outputs[state.output]
            state.generator.set_state(torch.frombuffer(bytearray(carried.generator), dtype=torch.uint8))
            for name, value in carried.slots.items():
                state[name] = value
            carried.slots = {}

    def awaits(self, request_id: str) -> bool:
        """Whether more of this request is to come."""
        return not self.first and not self._arrived[request_id].last

    def complete(self, state: State) -> None:
        """Give a state that is at its end what the pools before had to tell."""
        if self.first:
            return
        carried = self._arrived[state.request.id].outputs[state.output]
        for name, value in carried.slots.items():
            state[name] = value
        state.notes = {**carried.notes, **state.notes}
        state.said = [*carried.said, *state.said]
        state.timed = {**carried.timed, **state.timed}

    def spent(self, request_id: str) -> Took:
        """What it took before this part."""
        arrived = self._arrived.get(request_id)
        return Took() if arrived is None else arrived.spent

    def forget(self, request_id: str) -> None:
        """The request has left, or ended."""
        self._arrived.pop(request_id, None)
        self._leaving.pop(request_id, None)

    # -- out -------------------------------------------------------------------------------------------------------

    def piece(self, request: Request, states: Collection[State], ended: dict[int, Carried]) -> Handed | None:
        """What has grown of a request that goes on here, if there is a stream, and something new.

        The first has all outputs, also those that have `ended`, which are taken out of there.
        """
        if not self._streams or not all(map(self._pipeline.leaves, states)):
            return None
        leaving = self._leaving.setdefault(request.id, Leaving())
        if leaving.flight >= WINDOW or (leaving.pieces and not any(self._news(leaving, state) for state in states)):
            return None
        begins = not leaving.pieces
        outputs = dict[int, Carried]()
        if begins:
            outputs.update(ended)
            ended.clear()
        for state in states:
            names = self._pipeline.leaving if begins else self._streams
            slots = {name: self._told(leaving, state, name) for name in names}
            outputs[state.output] = Carried(slots, _random(state) if begins else b"")
        leaving.flight += 1
        return self._handed(request.id, leaving, Handover(outputs))

    def whole(self, state: State) -> Carried:
        """All that was not told yet of a state whose part is done."""
        leaving = self._leaving.setdefault(state.request.id, Leaving())
        known = self._pipeline.leaving if leaving.pieces else {}
        names = [name for name in state.names if name not in known or name in self._streams]
        slots = {name: self._told(leaving, state, name) for name in names}
        return Carried(slots, _random(state), state.notes, state.said, state.timed)

    def final(self, request_id: str, outputs: dict[int, Carried], spent: Took) -> Handed:
        """The end of a request here."""
        return self._handed(request_id, self._leaving.get(request_id, Leaving()), Handover(outputs, spent, True))

    def taken(self, request_id: str) -> None:
        """A piece of that request has arrived."""
        if (leaving := self._leaving.get(request_id)) is not None:
            leaving.flight -= 1

    def _handed(self, request_id: str, leaving: Leaving, handover: Handover) -> Handed:
        leaving.pieces += 1
        handover.dtype = name_of(self._pipeline.ctx.dtype)
        return Handed(request_id, leaving.pieces - 1, handover, handover.last)

    def _news(self, leaving: Leaving, state: State) -> bool:
        return any(len(state[name].items) > leaving.told[state.output, name] for name in self._streams)

    def _told(self, leaving: Leaving, state: State, name: str) -> Any:
        value = state[name]
        if isinstance(value, KV):
            return whole_of(value, self._pipeline.ctx.mesh)
        if not isinstance(value, Stream):
            return value
        at = leaving.told.get((state.output, name), 0)
        leaving.told[state.output, name] = len(value.items)
        return Stream(value.items[at:], value.closed)


def apart(heard: Heard) -> Heard:
    """The same, with data that may be written to and begin where those of torch's own tensors do."""
    data = torch.empty(len(heard.data), dtype=torch.uint8).numpy()
    data[:] = memoryview(heard.data)
    return replace(heard, data=data.data)


def _add(slots: dict[str, Any], state: State | None, name: str, value: Any) -> None:
    """`value` to what there is of that slot: in `state` once that has begun, or has come and waits in `slots`."""
    there = state[name] if state is not None and name in state else slots.get(name)
    if not isinstance(value, Stream):
        slots[name] = value
    elif isinstance(there, Stream):
        there.items += value.items
        there.closed = there.closed or value.closed
    elif state is None:  # of one that has begun, nobody reads it any more
        slots[name] = value


def _random(state: State) -> bytes:
    return bytes(state.generator.get_state().numpy().tobytes())
