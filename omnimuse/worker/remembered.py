"""What is remembered for who may come again: outputs of stages, and adapters; it gives way to who is in progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omnimuse.lora.adapter import Adapter
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.worker.job import Job


class Remembered:
    """That of one runner, whose `jobs` and their `states` are in progress."""

    def __init__(self, ctx: Context, jobs: Mapping[str, Job], states: Mapping[str, State]) -> None:
        self._ctx, self._jobs, self._states = ctx, jobs, states

    def within(self, most: int | None) -> None:
        """So many bytes of it (None: as many as ever) beside what these have; adapters go first."""
        self._ctx.memo.within(most, self._jobs)
        left = None if most is None else most - self._ctx.memo.bytes
        self._ctx.adapters.within(left, worn_by(self._states.values()))

    def forget(self) -> None:
        """Let go of all that nobody in progress has."""
        self._ctx.memo.clear()
        self._ctx.adapters.within(0, worn_by(self._states.values()))

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, and of those that wait for others. Any thread may ask."""
        worn, there = worn_by(list(self._states.values())), self._ctx.adapters.living
        on = sum(each.nbytes for each in there if each in worn)
        return on, sum(each.nbytes for each in there) - on


def worn_by(states: Iterable[State]) -> set[Adapter]:
    """The adapters that any of them wears."""
    return {each.adapter for state in states for each in state.worn}
