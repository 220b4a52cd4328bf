"""One attempt at a job: drawn by the workers, its files stored, its end written down.

`server/jobs/book.py` decides when; this says how. The row of the job is the judge: an attempt that the store no longer
knows as running (cancelled, deleted, begun anew) leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import cast

import msgspec

from omnimuse.core.errors import EngineDeadError, RequestError, StorageError
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec
from omnimuse.deploy.wire import Finished, Grown, MadeFile, Spelt, Update, unpack
from omnimuse.server.errors import NOTED, ApiError, body, refusal, to_api_error
from omnimuse.server.jobs.files import Files, new_job_file_id
from omnimuse.server.jobs.live import Live
from omnimuse.server.jobs.row import Job, Outcome, Trouble
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.log import Entry
from omnimuse.server.metrics import Metrics
from omnimuse.server.traces import NoTracer, Tracer, Worked
from omnimuse.server.translate.asks import renamed
from omnimuse.server.workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobRules:
    """How jobs are treated: `limit` run at once, `each` of one tenant; what they made stays `keep` seconds.

    For one tenant at most `max_jobs` are kept, and no more are accepted where their files have `max_kept` bytes.
    `model` is the name of the model that is served, `spec` its family, which reads requests back from the store.
    `clock` is the one of deadlines, `now` gives seconds since 1970, `tracer` hears of jobs that ended.
    """

    spec: Spec
    keep: float
    limit: int = 1
    max_jobs: int = 1000
    max_kept: int = 8 * 2**30
    model: str = ""
    each: int = 2**31
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    tracer: Tracer = NoTracer()


def stored_request(job: Job, spec: Spec) -> Request:
    """The request of a job, without its deadline: that is a date in the job's times."""
    fields = job.work.request
    return unpack({**fields, "extra": {**fields["extra"]}, "params": {**fields["params"]}}, spec)


def storage_full(error: Exception) -> ApiError:
    """What a client is told when the disk refuses; the reason stays in the log."""
    logger.error("the disk refuses", exc_info=error)
    return refusal("storage_full", "the server cannot store anything now: its disk is full or refuses")


class Attempts:
    """Makes attempts; shared by all jobs of a server."""

    def __init__(self, store: JobStore, files: Files, workers: Workers, metrics: Metrics, rules: JobRules) -> None:
        self._store, self._files, self._workers = store, files, workers
        self._metrics, self._rules = metrics, rules

    async def draw(self, live: Live) -> None:
        """From the request to a completed job. Errors are raised; cancelling the task stops the work within a step."""
        # A new id for every attempt: what a lost one still writes never passes for this one's.
        request = replace(stored_request(live.job, self._rules.spec), id=uuid.uuid4().hex, deadline=live.deadline)
        made: Finished | None = None
        updates = cast(AsyncGenerator[Update, None], self._workers.run(request, live.job.work.form))
        async with aclosing(updates):
            async for update in updates:
                if isinstance(update, Finished):
                    made, live.finishing = update, True
                elif not isinstance(update, Grown | Spelt):  # nobody hears a job grow: watchers come and go
                    live.see(update)
        if made is None:
            raise EngineDeadError("the worker ended the request without a result; try again")
        times = live.job.times
        await self._finish(live, made.after(max(0.0, (times.started or times.created) - times.created)))

    async def _finish(self, live: Live, made: Finished) -> None:
        """Move the files to where they stay, then say so in the store; leave no file unless both happened."""
        kept: list[MadeFile] = []
        done = False
        try:
            for file in made.files:
                name = await asyncio.to_thread(self._files.keep, file, new_job_file_id())
                kept.append(msgspec.structs.replace(file, name=name))
            now = self._rules.now()
            outcome = Outcome(tuple(kept), made.timings, made.memory, made.remarks)
            done = await self._store.finish(live.job, outcome, now, now + self._rules.keep)
        finally:
            if not done:
                await asyncio.to_thread(self.remove, kept)
                await asyncio.to_thread(self._discard, made.files)
        if done:
            pixels = sum(file.width * file.height * file.frames for file in kept)
            told = made.remarks
            self._metrics.drawn(pixels, made.timings, told.drew, made.memory, told.needs, told.labels)
            self.count(replace(live.job, timings=made.timings), "completed")

    async def fail(self, live: Live, error: BaseException) -> None:
        """Write down that the job failed, and why, in the words that clients are told."""
        if type(error) is RequestError:  # narrower ones are of no field
            error = renamed(error, live.job.work.names)
        if isinstance(error, StorageError | OSError):
            told = storage_full(error)
        else:
            told = to_api_error(cast(Exception, error))
        if told.code in NOTED:
            logger.error("job %s failed", live.job.id, exc_info=error)
        said = body(told)["error"]
        job, now = replace(live.job, progress=live.meter.percent), self._rules.now()
        trouble = Trouble(said["code"], said["message"], said["param"])
        if await self._store.fail(job, trouble, now, now + self._rules.keep):
            self.count(job, "expired" if told.code == "deadline_exceeded" else "failed", told.code)

    async def put_back(self, live: Live) -> None:
        """The server ends in good order: the job waits for the next one. One that was cancelled stays cancelled."""
        if await self._store.put_back(live.job):
            Entry("job", live.job.id, "put back", live.job.tenant).write(logger)

    def remove(self, files: Iterable[MadeFile]) -> None:
        """Remove kept files. Blocks on the disk."""
        for file in files:
            self._files.remove(file.name)

    def count(self, job: Job, outcome: str, error: str = "") -> None:
        """Tell the metrics and the log that a job ended; `error` is the code of what it failed with."""
        task = f"{'image' if job.work.request['images'] else 'text'}-to-{job.kind}"
        seconds = max(0.0, self._rules.now() - job.times.created)
        self._metrics.ended(task, outcome, seconds)
        Entry("job", job.id, outcome, job.tenant, seconds, {"task": task, "error": error}).write(logger)
        self._rules.tracer.ended(Worked("job", job.id, task, outcome, seconds, job.tenant, error, job.timings))

    def _discard(self, files: Iterable[MadeFile]) -> None:
        for file in files:
            self._files.discard(file)
