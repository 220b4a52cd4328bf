"""Recordings of what every rank of an engine computes; begun and ended between two of its ticks.

`api.py` and the worker processes of a server ask for them; the other ranks hear of it from rank 0 (`follow`). Where a
rank has another disk than rank 0, what it has recorded goes there.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omnimuse.core.errors import EngineClosedError, EngineDeadError, refused
from omnimuse.observe.profile import Recorder, merge, part_of
from omnimuse.parallel.agree import said_by_all
from omnimuse.parallel.collectives import told
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.plan import TickPlan
from omnimuse.worker.runner import Runner

log = logging.getLogger(__name__)


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
        if self._runner.writers:
            log.warning("what vLLM writes is computed in a process of its own, of which a recording has nothing")
        self._recorder.start()
        self._tell(TickPlan(record=True))
        self._runner.blocks.recorded = True

    def end(self, path: Path) -> list[Path]:
        """Where each rank's trace is, beside `path`; `merge` makes one of them. A rank that has none says why in the
        log.
        """
        self._check()
        self._tell(TickPlan(write=str(path)))
        self._runner.blocks.recorded = False
        parts = [part_of(path, rank) for rank in range(self._mesh.size)]
        try:
            try:
                self._recorder.write(path)
            except BaseException:  # the others are heard all the same
                bring(self._mesh, path, path, wanted=False)
                raise
            bring(self._mesh, path, path)
        except Exception:  # nobody makes a whole of what the others have
            for part in parts:
                part.unlink(missing_ok=True)
            raise
        return parts

    def drop(self) -> None:
        """End one that nobody wants any more, if there is one."""
        self._check()
        self._tell(TickPlan(record=False))
        self.close()

    def close(self) -> None:
        """The same on this rank alone."""
        self._runner.blocks.recorded = False
        self._recorder.drop()


@contextmanager
def recording(
    recordings: Recordings, between_ticks: Callable[[Callable[[], Any]], Future[Any]], path: Path
) -> Iterator[None]:
    """Record while this context lasts; the whole is at `path` then."""
    begun = between_ticks(recordings.begin)
    try:
        begun.result()
    except BaseException:  # who is interrupted does not keep it from beginning
        with suppress(EngineClosedError):  # of whose end the first error tells
            between_ticks(recordings.drop)
        raise
    try:
        yield
    finally:
        merge(between_ticks(partial(recordings.end, path)).result(), path)


def follow_recording(plan: TickPlan, recorder: Recorder, runner: Runner) -> None:
    """What another rank does when rank 0 begins one, or ends it; what goes wrong is told in the log alone."""
    runner.blocks.recorded = bool(plan.record)
    if plan.record:
        recorder.try_to(recorder.start)
    elif plan.record is False:
        recorder.try_to(recorder.drop)
    else:
        path, mesh = Path(plan.write), runner.pipeline.ctx.mesh
        with ExitStack() as opened:
            here = path
            if not path.parent.is_dir():  # rank 0's folder is elsewhere
                with suppress(OSError):  # who has no disk for it is told so when it writes
                    here = Path(opened.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)), path.name)
            recorder.try_to(partial(recorder.write, here, mesh.rank))
            bring(mesh, path, here)


def bring(mesh: Mesh, path: Path, here: Path, *, wanted: bool = True) -> None:
    """Every part of the recording at `path` to rank 0, from ranks that have theirs `here` on a disk of their own; none
    that rank 0 says is not `wanted`. OSError, once all ranks are through, if the disk of rank 0 refuses one;
    EngineDeadError if a rank is gone.
    """
    if mesh.size == 1:
        return
    mine = part_of(here, mesh.rank)
    try:
        sizes = said_by_all(mesh, str(mine.stat().st_size) if mine.exists() else "")
    except RuntimeError as error:
        raise EngineDeadError(f"a rank is gone ({error}); start the engine again") from error
    parts = {rank: part_of(path, rank) for rank, size in enumerate(sizes) if size}
    away = [rank for rank, part in parts.items() if not part.exists() or part.stat().st_size != int(sizes[rank])]
    said = json.dumps(away if wanted else None).encode() if mesh.is_leader else None
    if (asked := json.loads(told(mesh, 0, said))) is None:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
        return
    problem: OSError | None = None
    for rank in asked:
        content = told(mesh, rank, _taken(mine) if rank == mesh.rank else None)
        if mesh.is_leader and content:
            try:
                parts[rank].write_bytes(gzip.decompress(content))
            except OSError as refusal:  # the ranks that are next wait for rank 0
                problem = problem or refusal
    if problem is not None:
        raise refused(problem, path) from problem


def _taken(part: Path) -> bytes:
    """What it holds, compressed, and no longer on the disk; nothing where it cannot be read, which the log tells."""
    try:
        content = gzip.compress(part.read_bytes(), 1)
        part.unlink()  # before rank 0 writes, whose disk may be the same, seen late
    except OSError as problem:
        log.warning("the recording of this rank could not be brought to rank 0: %s", problem)
        return b""
    return content
