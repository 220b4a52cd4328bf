"""What is remembered for who may come again: outputs of stages, and adapters; it gives way to who is in progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omnimuse.lora.adapter import Adapter
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.worker.job import Job


class Remembered:
    """That of one runner, whose `states` are in progress."""

    def __init__(self, ctx: Context, states: Mapping[str, State]) -> None:
        self._ctx, self._states = ctx, states

    def within(self, most: int | None, jobs: Mapping[str, Job]) -> None:
        """So many bytes of it (None: as many as ever) beside what `jobs` have; adapters go first."""
        self._ctx.memo.within(most, jobs)
        if most is not None:
            self._ctx.adapters.within(most - self._ctx.memo.bytes, worn_by(self._states.values()))

    def forget(self) -> None:
        """Let go of all that nobody in progress has."""
        self._ctx.memo.clear()
        self._ctx.adapters.within(0, worn_by(self._states.values()))

    def worn_alone(self, request_id: str) -> int:
        """The bytes of what a request wears and nobody else does who is not paused."""
        mine = (state for state in self._states.values() if state.request.id == request_id)
        others = (state for state in self._states.values() if state.request.id != request_id and not state.parked)
        return sum(adapter.nbytes for adapter in worn_by(mine) - worn_by(others))


def worn_by(states: Iterable[State]) -> set[Adapter]:
    """The adapters that any of them wears."""
    return {each.adapter for state in states for each in state.worn}
