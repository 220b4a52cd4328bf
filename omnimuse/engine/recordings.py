"""Recordings of what every rank of an engine computes; begun and ended between two of its ticks.

`api.py` and the worker processes of a server ask for them; the other ranks hear of it from rank 0 (`follow`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from omnimuse.observe.profile import Recorder, part_of
from omnimuse.parallel.collectives import meet
from omnimuse.worker.plan import TickPlan
from omnimuse.worker.runner import Runner


class Recordings:
    """Those of one engine, one at a time. `tell` gives a plan to the other ranks, `check` raises where the engine is
    over.
    """

    def __init__(self, runner: Runner, tell: Callable[[TickPlan], None], check: Callable[[], None]) -> None:
        self._runner, self._tell, self._check = runner, tell, check
        self._recorder, self._mesh = Recorder(), runner.pipeline.ctx.mesh

    def begin(self) -> None:
        """Record what every rank computes from now on; one that nobody has ended is dropped. CapacityError, and no rank
        is recorded, while another engine of this process is.
        """
        self._check()
        self._recorder.start()
        self._tell(TickPlan(record=True))
        self._runner.blocks.recorded = True

    def end(self, path: Path) -> list[Path]:
        """Where each rank's trace is, compressed, beside `path`. A rank that could not write its own says why in the
        log.
        """
        self._check()
        self._tell(TickPlan(write=str(path)))
        self._runner.blocks.recorded = False
        try:
            self._recorder.write(path)
        finally:
            meet(self._mesh)
        return [part_of(path, rank) for rank in range(self._mesh.size)]

    def drop(self) -> None:
        """End one that nobody wants any more, if there is one."""
        self._check()
        self._tell(TickPlan(record=False))
        self.close()

    def close(self) -> None:
        """The same on this rank alone."""
        self._runner.blocks.recorded = False
        self._recorder.drop()


def follow_recording(plan: TickPlan, recorder: Recorder, runner: Runner) -> None:
    """What another rank does when rank 0 begins one, or ends it; what goes wrong is told in the log alone."""
    runner.blocks.recorded = bool(plan.record)
    if plan.record:
        recorder.try_to(recorder.start)
    elif plan.record is False:
        recorder.try_to(recorder.drop)
    else:
        recorder.try_to(partial(recorder.write, Path(plan.write), runner.pipeline.ctx.mesh.rank))
        meet(runner.pipeline.ctx.mesh)
