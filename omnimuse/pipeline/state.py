"""`State`: everything one output needs while it is being made.

The runner owns states; stages read and write their declared slots through `state["name"]`. In strict mode a state
refuses slots that the running stage did not declare. Nothing here knows about networks, batches or clocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from omnimuse.core.request import Request
from omnimuse.diffusion.solvers import SolverMemory
from omnimuse.layers.stack import Memory

if TYPE_CHECKING:
    from omnimuse.pipeline.stage import Stage, Step

REQUEST_FIELDS = frozenset({"prompt", "negative_prompt", "images"})
"""Names a stage may read like slots; they come from the request."""


class SlotError(Exception):
    """A stage touched a slot that it did not declare, or that is empty: a bug in a pipeline, never in a request."""


class State:
    """One output in the making: slots, random generator, plan, position, solver and cache memory.

    `stage` is the index of the stage to run next and `position` the step to take next within a loop. `working` belongs
    to the running loop alone and is emptied when it finishes.
    """

    def __init__(self, request: Request, output: int, *, strict: bool = False) -> None:
        self.id = f"{request.id}/{output}"
        self.request = request
        self.output = output
        self.generator = torch.Generator("cpu").manual_seed(request.seed(output))
        self.stage = 0
        self.plan: list[Step] = []
        self.position = 0
        self.solver: SolverMemory | None = None
        self.memories: dict[tuple[str, str], Memory] = {}
        self.working: dict[str, Any] = {}
        self.timings: dict[str, float] = {}
        self._slots: dict[str, Any] = {}
        self._strict = strict
        self._open: tuple[frozenset[str], frozenset[str]] | None = None

    def __getitem__(self, name: str) -> Any:
        self._refuse_undeclared(name, "read")
        if name in REQUEST_FIELDS:
            return getattr(self.request, name)
        if name not in self._slots:
            raise SlotError(f"slot {name!r} is empty; full slots are {sorted(self._slots)}")
        return self._slots[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._refuse_undeclared(name, "write")
        self._slots[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def free(self, name: str) -> None:
        """Empty a slot after its last reader."""
        self._slots.pop(name, None)

    @contextmanager
    def opened_for(self, stage: Stage) -> Iterator[None]:
        """While this context lasts, only the slots that `stage` declares may be touched (strict mode)."""
        previous, self._open = self._open, (frozenset(stage.reads), frozenset(stage.writes))
        try:
            yield
        finally:
            self._open = previous

    def memory(self, network: str, branch: str) -> Memory:
        """The step-cache memory of one network and branch, positioned among the steps which that network takes."""
        memory = self.memories.setdefault((network, branch), Memory())
        memory.step = sum(step.network == network for step in self.plan[: self.position])
        memory.steps = memory.step + sum(step.network == network for step in self.plan[self.position :])
        return memory

    def to(self, device: torch.device) -> None:
        """Move every tensor of this state; used to pause (to the CPU) and to resume."""
        self._slots = move(self._slots, device)
        self.working = move(self.working, device)
        if self.solver is not None:
            self.solver.to(device)
        for memory in self.memories.values():
            memory.to(device)

    def clear(self) -> None:
        """Let go of everything that takes memory."""
        self._slots, self.working, self.memories, self.solver, self.plan = {}, {}, {}, None, []

    def _refuse_undeclared(self, name: str, verb: str) -> None:
        if not self._strict or self._open is None:
            return
        reads, writes = self._open
        if name not in (writes if verb == "write" else reads | writes):
            raise SlotError(
                f"cannot {verb} slot {name!r}: the stage declares reads {sorted(reads)}, writes {sorted(writes)}"
            )


def move(value: Any, device: torch.device) -> Any:
    """`value` with every tensor inside it (in containers and dataclasses, too) on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(move(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        init = [f.name for f in fields(value) if f.init]
        return replace(value, **{name: move(getattr(value, name), device) for name in init})
    return value
