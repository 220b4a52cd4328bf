"""`State`: everything one output needs while it is being made.

The runner owns states; stages read and write their declared slots through `state["name"]`. In strict mode a state
refuses slots that the running stage did not declare. Nothing here knows about networks, batches or clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from omnimuse.ar.kv import KV
from omnimuse.core.output import Note
from omnimuse.core.request import Request
from omnimuse.diffusion.solvers import SolverMemory
from omnimuse.layers.stack import Memory
from omnimuse.lora.adapter import Worn

if TYPE_CHECKING:
    from omnimuse.pipeline.stage import Stage, Step

CPU = torch.device("cpu")
OPEN = nullcontext()
EXACT: Mapping[str, bool] = MappingProxyType({"exact": True})
"""What the metadata of a record's field say that is float32 whatever networks compute in."""

REQUEST_FIELDS = frozenset({"prompt", "messages", "tokens", "negative_prompt", "images", "region", "sounds", "videos"})
"""Names a stage may read like slots; they come from the request."""


class SlotError(Exception):
    """A stage touched a slot that it did not declare, or that is empty: a bug in a pipeline, never in a request."""


@dataclass
class Cursor:
    """Where a track is that waits for its turn; the fields are those of `State`."""

    stage: int
    plan: list[Step] = field(default_factory=list)
    position: int = 0
    solver: SolverMemory | None = None
    memories: dict[tuple[str, str], Memory] = field(default_factory=dict)
    working: dict[str, Any] = field(default_factory=dict)


class State:
    """One output in the making: slots, random generator, plan, position, solver and cache memory.

    Networks wear the adapters `worn` for it. `stage` is the index of the stage to run next and `position` the step to
    take next within a loop, perhaps with others behind it in one `stride`. `working` belongs to the running loop alone
    and is emptied when it finishes. All these are of the `track` whose turn it is; `done` are the stages behind it in
    any. `notes` is what stages, by name, have to tell people, `said` what a library warned of that runs the whole
    pipeline, `timed` how many seconds parts of a stage took that somebody else has timed, by name. `grown` are pieces
    of the output that are finished and not yet told to who waits for it: medium, where the piece begins, what it is,
    and the tokens that it was written in. Of one that is `parked` only what is no tensor can be asked.
    """

    def __init__(
        self,
        request: Request,
        output: int,
        *,
        strict: bool = False,
        worn: tuple[Worn, ...] = (),
        starts: Sequence[int] = (0,),
    ) -> None:
        self.id = f"{request.id}/{output}"
        self.request = request
        self.output = output
        self.worn = worn
        self.generator = torch.Generator("cpu").manual_seed(request.seed(output))
        self.track = 0
        self.done: set[int] = set()
        self._waiting = [Cursor(start) for start in starts]
        self.stage = starts[0]
        self.plan: list[Step] = []
        self.position = 0
        self.stride = 1
        self.solver: SolverMemory | None = None
        self.memories: dict[tuple[str, str], Memory] = {}
        self.working: dict[str, Any] = {}
        self.notes: dict[str, Note] = {}
        self.said: list[str] = []
        self.timed: dict[str, float] = {}
        self.grown: list[tuple[str, int, Any, tuple[int, ...]]] = []
        self._slots: dict[str, Any] = {}
        self.strict = strict
        self.parked = False
        self._open: tuple[frozenset[str], frozenset[str]] | None = None

    def __getitem__(self, name: str) -> Any:
        if self._open is not None:
            self._refuse_undeclared(name, "read")
        if name in REQUEST_FIELDS:
            return getattr(self.request, name)
        if name not in self._slots:
            raise SlotError(f"slot {name!r} is empty; full slots are {sorted(self._slots)}")
        return self._slots[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self._open is not None:
            self._refuse_undeclared(name, "write")
        self._slots[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    @property
    def names(self) -> list[str]:
        """The slots that are full."""
        return list(self._slots)

    def turn(self, track: int) -> None:
        """Go on with that track."""
        if track == self.track:
            return
        self._waiting[self.track] = Cursor(
            self.stage, self.plan, self.position, self.solver, self.memories, self.working
        )
        self.track, there = track, self._waiting[track]
        self.stage, self.plan, self.position = there.stage, there.plan, there.position
        self.solver, self.memories, self.working = there.solver, there.memories, there.working

    def grow(self, medium: str, start: int, piece: Any, tokens: tuple[int, ...] = ()) -> None:
        """A piece of what this output will hold of `medium` is finished, written in `tokens`; nobody changes it now."""
        if self.request.chunks:
            self.grown.append((medium, start, piece, tokens))

    def free(self, name: str) -> None:
        """Empty a slot after its last reader."""
        self._slots.pop(name, None)

    def goes_without(self, stage: Stage) -> bool:
        """Whether `stage`, which has just run, left its slots empty, as the request has nothing for it."""
        return bool(stage.writes) and all(_empty(self._slots.get(slot, ...)) for slot in stage.writes)

    def opened_for(self, stage: Stage) -> AbstractContextManager[None]:
        """While this context lasts, only the slots that `stage` declares may be touched (strict mode)."""
        return self._opened_for(stage) if self.strict else OPEN

    @contextmanager
    def _opened_for(self, stage: Stage) -> Iterator[None]:
        previous, self._open = self._open, (frozenset(stage.reads), frozenset(stage.writes))
        try:
            yield
        finally:
            self._open = previous

    def adapters(self, components: Collection[str]) -> tuple[Hashable, ...]:
        """What of `worn` changes any of these components: what they compute is the same where this is equal."""
        if not self.worn:
            return ()
        return tuple(worn.key for worn in self.worn if not worn.adapter.components.isdisjoint(components))

    def memory(self, network: str, branch: str) -> Memory:
        """The step-cache memory of one network and branch, positioned among the steps which that network takes."""
        memory = self.memories.setdefault((network, branch), Memory(cache=self.request.params.cache))
        memory.at, memory.of = self.position, len(self.plan)
        memory.step = sum(step.network == network for step in self.plan[: self.position])
        memory.steps = memory.step + sum(step.network == network for step in self.plan[self.position :])
        return memory

    def park(self) -> None:
        """Move every tensor of this state to the CPU; `wake` brings back those that were elsewhere."""
        self.parked = True
        self._slots = park(self._slots)
        for track in range(len(self._waiting)):
            self.turn(track)
            self.working = park(self.working)
            self._move_memories(CPU)

    def wake(self, device: torch.device) -> None:
        """The reverse of `park`; `device` is where the state is worked on."""
        self.parked = False
        self._slots = wake(self._slots)
        for track in range(len(self._waiting)):
            self.turn(track)
            self.working = wake(self.working)
            self._move_memories(device)

    def remembered(self) -> list[Any]:
        """All that has tensors in it."""
        tracks: list[State | Cursor] = [self, *self._waiting]
        return [self._slots, *((each.working, each.memories, each.solver) for each in tracks)]

    def clear(self) -> None:
        """Let go of everything that takes memory."""
        self._slots, self.working, self.memories, self.solver, self.plan = {}, {}, {}, None, []
        self._waiting = [Cursor(cursor.stage) for cursor in self._waiting]
        self.worn = ()

    def _move_memories(self, device: torch.device) -> None:
        if self.solver is not None:
            self.solver.to(device)
        for memory in self.memories.values():
            memory.to(device)

    def _refuse_undeclared(self, name: str, verb: str) -> None:
        assert self._open is not None
        reads, writes = self._open
        if name not in (writes if verb == "write" else reads | writes):
            raise SlotError(
                f"cannot {verb} slot {name!r}: the stage declares reads {sorted(reads)}, writes {sorted(writes)}"
            )


@dataclass(frozen=True)
class Parked:
    """A tensor, or what a row remembers, that waits on the CPU, and where it belongs."""

    tensor: torch.Tensor | KV
    home: torch.device


def park(value: Any) -> Any:
    """`value` with every tensor inside it on the CPU; `wake` undoes it. Containers and dataclasses are gone through."""
    return changed(value, lambda part: part if part.device == CPU else Parked(part.to(CPU), part.device))


def wake(value: Any) -> Any:
    """What `park` was given."""
    return changed(value, lambda part: part.tensor.to(part.home) if isinstance(part, Parked) else part)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and not value)


def changed(value: Any, change: Callable[[Any], Any], *, exact: bool = True) -> Any:
    """`value` with every tensor (parked ones, too) inside it replaced by what `change` makes of it; those in fields of
    records that are `EXACT` stay unless `exact`.
    """
    if isinstance(value, torch.Tensor | KV | Parked):
        return change(value)
    if isinstance(value, dict):
        return {key: changed(item, change, exact=exact) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(changed(item, change, exact=exact) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        init = [f.name for f in fields(value) if f.init and (exact or "exact" not in f.metadata)]
        return replace(value, **{name: changed(getattr(value, name), change, exact=exact) for name in init})
    return value
