"""Durable work: accepted jobs wait in the store, are drawn by the workers, and end as completed or failed, always.

Routes submit, watch, cancel and delete; one task starts waiting jobs, one task per running job sees it to its end. A
job is committed before `submit` returns. The store decides races: whoever changes the row first has won, and a result
whose row is gone is removed again. Nothing here knows what a video is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import DeadlineError, RequestError, StorageError
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, pack
from omnimuse.server.background import Background
from omnimuse.server.errors import refusal
from omnimuse.server.jobs.attempt import Attempts, JobRules, storage_full, stored_request
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.live import Live, News
from omnimuse.server.jobs.row import Idempotency, Job, Kind, Page, Times, Trouble, Work
from omnimuse.server.jobs.store import IdempotencyConflict, JobStore
from omnimuse.server.log import Entry
from omnimuse.server.metrics import Metrics
from omnimuse.server.orders.admission import Admission
from omnimuse.server.orders.gate import Gate
from omnimuse.server.workers import Workers

logger = logging.getLogger(__name__)

CANCELLED = Trouble("cancelled", "the job was cancelled")
LOST = Trouble("worker_lost", "the server ended twice while it worked on this job; it is not tried again")
FOREIGN = Trouble("model_not_found", "the server was started with another model or version before this job ran")
_HOUSEKEEPING = 60.0  # seconds between looks for what has expired
_UNREADY = 0.25  # seconds between looks for a worker, while jobs wait and none is ready
_PATIENCE = 1.0  # seconds before a store that refused is asked again


class Jobs:
    """The jobs of one server; lives on one event loop, between `start` and `close`."""

    def __init__(
        self,
        store: JobStore,
        files: Files,
        workers: Workers,
        admission: Admission,
        metrics: Metrics,
        rules: JobRules,
    ) -> None:
        self._store, self._files, self._workers = store, files, workers
        self._admission, self._metrics, self._rules = admission, metrics, rules
        self._gate = Gate(workers, files, admission, metrics)
        self._attempts = Attempts(store, files, workers, metrics, rules)
        self._live: dict[str, Live] = {}
        self._attending: set[asyncio.Task[None]] = set()
        self._starting = Background("starting jobs", self._start_waiting, metrics.failed)
        self._tidying = Background("tidying up", self._tidy, metrics.failed)
        self._held = self._seen_ready = False

    @property
    def trouble(self) -> list[str]:
        """What keeps failing in the background, in words; empty while nothing does."""
        return [work.trouble for work in (self._starting, self._tidying) if work.trouble]

    async def start(self) -> None:
        """Take up what an earlier server left, and begin to draw. Nothing must draw yet: the spool is emptied."""
        now = self._rules.now()
        await asyncio.to_thread(self._files.empty_spool)
        await self._store.recover(LOST, now, now + self._rules.keep)
        await asyncio.to_thread(self._files.sweep, await self._store.file_names())
        waiting = await self._store.queued()
        for job in waiting:
            await self._revive(job, now)
        self._metrics.recovered(len(self._live))
        self._starting.start()
        self._tidying.start()

    async def hold(self) -> None:
        """Start no more jobs: those that wait stay in the store for the next server, those that run go on."""
        self._held = True
        await self._starting.stop()
        await self._tidying.stop()
        for live in [live for live in self._live.values() if live.drawing is None]:
            self._forget(live, live.job, served=False)

    async def close(self, grace: float) -> None:
        """As `hold`; what runs after `grace` seconds is stopped and waits for the next server, too."""
        await self.hold()
        if self._attending and grace > 0:
            await asyncio.wait(self._attending, timeout=grace)
        for live in list(self._live.values()):
            _interrupt(live)
        if self._attending:
            await asyncio.wait(self._attending)

    # -- for routes ----------------------------------------------------------------------------------------------

    async def submit(
        self,
        tenant: str,
        request: Request,
        form: Form,
        kind: Kind,
        detail: dict[str, Any],
        idem: Idempotency | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Job:
        """Accept a job; when this returns, it is on disk. `detail` is kept for the route, as plain JSON values, and
        `names`, what the client called each parameter, for errors.

        A job that `idem` made before is returned as it stands. ApiError for another body under that key, a full disk
        or a server that drains; CapacityError and DeadlineError from the admission.
        """
        # A client that goes while the job is being stored must not leave it stored and unknown here.
        return await asyncio.shield(self._submit(self._new(tenant, request, form, kind, detail, names), request, idem))

    async def get(self, tenant: str, job_id: str) -> Job | None:
        """A job of this tenant as it stands, or None."""
        job = await self._store.get(tenant, job_id, self._rules.now())
        return None if job is None else self.current(job)

    async def page(self, tenant: str, kind: Kind, page: Page) -> tuple[list[Job], bool]:
        """Jobs of this tenant and whether more follow; RequestError for an unknown `page.after`."""
        jobs, more = await self._store.page(tenant, kind, page, self._rules.now())
        return [self.current(job) for job in jobs], more

    async def cancel(self, tenant: str, job_id: str) -> Job | None:
        """End a job as failed with `CANCELLED`, unless it has ended; returns it as it stands then, or None."""
        while (job := await self.get(tenant, job_id)) is not None and not job.ended:
            now = self._rules.now()
            if await self._store.fail(job, CANCELLED, now, now + self._rules.keep):
                self._stop(_gone(job))
        return job

    async def delete(self, tenant: str, job_id: str) -> bool:
        """Remove a job and its files, stopping it first; False if there is none."""
        job = await self._store.delete(tenant, job_id)
        if job is None:
            return False
        if not job.ended:
            self._stop(_gone(job))
        await asyncio.to_thread(self._attempts.remove, job.files)
        return True

    async def subscribe(self, job: Job) -> AsyncGenerator[News, None]:
        """Steps and previews of `job` from now on; last comes the job as it ended (or was left, on a shutdown)."""
        live = self._live.get(job.id)
        if live is None:
            yield await self._as_stored(job)
            return
        queue = live.watch()
        try:
            while not isinstance(news := await queue.get(), Job):
                yield news
            yield news
        finally:
            live.unwatch(queue)

    def current(self, job: Job) -> Job:
        """`job` with the progress of this moment, which is not stored."""
        live = self._live.get(job.id)
        if live is None or job.state != "in_progress":
            return job
        return replace(job, progress=live.meter.percent)

    def eta(self, job: Job) -> float | None:
        """Seconds until the job ends, as far as one can know; None when it has ended or nothing was measured."""
        live = self._live.get(job.id)
        if live is None:
            return None
        if live.drawing is not None and (left := live.meter.seconds_left()) is not None:
            return left
        return self._admission.load().expected_wait

    # -- accepting -----------------------------------------------------------------------------------------------

    def _new(
        self,
        tenant: str,
        request: Request,
        form: Form,
        kind: Kind,
        detail: dict[str, Any],
        names: Mapping[str, str] | None,
    ) -> Job:
        now, clock = self._rules.now(), self._rules.clock()
        # The monotonic clock means nothing to another process: what is stored is a date.
        deadline = None if request.deadline is None else now + request.deadline - clock
        work = Work(self._rules.model, pack(replace(request, deadline=None)), form, detail, dict(names or {}))
        return Job(f"{kind}_{secrets.token_hex(16)}", tenant, kind, work, Times(now, deadline=deadline))

    async def _submit(self, job: Job, request: Request, idem: Idempotency | None) -> Job:
        try:
            if idem is not None:
                earlier = await self._store.known(job.tenant, idem, job.times.created)
                if earlier is not None:
                    return self.current(earlier)
            if self._held:
                raise refusal("server_draining", "the server is shutting down; try again later")
            await self._gate.check()
            await self._check_quota(job.tenant)
            return await self._accept(job, request, idem)
        except IdempotencyConflict as error:
            raise refusal("idempotency_conflict", str(error)) from None
        except StorageError as error:
            raise storage_full(error) from error

    async def _check_quota(self, tenant: str) -> None:
        """ApiError 429 when as much is kept for `tenant` as may be."""
        jobs, size = await self._store.kept(tenant)
        most, room = self._rules.max_jobs, self._rules.max_kept
        if jobs >= most or size >= room:
            kept = f"{jobs} jobs with {told_bytes(size)} of files are kept for this key"
            allowed = f"at most {most} jobs and {told_bytes(room)} may be"
            self._metrics.rejected("quota_exceeded")
            raise refusal("quota_exceeded", f"{kept}, and {allowed}; delete some, or wait until they expire")

    async def _accept(self, job: Job, request: Request, idem: Idempotency | None) -> Job:
        ticket = self._gate.enter(request)
        live = Live(job, ticket, request.deadline, self._rules.clock)
        self._live[job.id] = live  # before it is stored: the dispatcher may find it at once
        accepted = None
        try:
            accepted = await self._store.accept(job, idem)
        finally:
            if accepted is not job:
                self._forget(live, job, served=False)
        if accepted is job:
            Entry("job", job.id, "accepted", job.tenant).write(logger)
        self._starting.wake()
        return self.current(accepted)

    async def _revive(self, job: Job, now: float) -> None:
        """Take up a job that waits in the store; it fails if this server cannot draw it."""
        deadline = None if job.times.deadline is None else self._rules.clock() + job.times.deadline - now
        try:
            request = None if job.work.model != self._rules.model else stored_request(job, self._rules.spec)
        except (RequestError, TypeError):  # parameters that another version of omnimuse knew
            request = None
        if request is None:
            await self._store.fail(job, FOREIGN, now, now + self._rules.keep)
            Entry("job", job.id, "failed", job.tenant, more={"error": FOREIGN.code}).write(logger)
        else:
            Entry("job", job.id, "taken up again", job.tenant).write(logger)
            self._live[job.id] = Live(job, self._admission.adopt(request), deadline, self._rules.clock)

    # -- running -------------------------------------------------------------------------------------------------

    async def _start_waiting(self) -> float:
        """Start waiting jobs and end late ones; seconds until there may be more to do."""
        await self._end_late()
        while self._may_start() and (job := await self._claim()) is not None:
            self._begin(job)
        return self._pause()

    async def _claim(self) -> Job | None:
        return await self._store.claim(self._rules.now(), self._rules.each)

    def _may_start(self) -> bool:
        # Workers that broke say why, at once. Where none was ever ready the start fails: jobs wait for a better one.
        self._seen_ready = self._seen_ready or self._workers.ready
        able = self._workers.ready or (self._seen_ready and bool(self._workers.broken))
        return able and not self._held and len(self._attending) < self._rules.limit

    def _pause(self) -> float:
        """Seconds until there is something to do that nobody wakes for."""
        waiting = [live for live in self._live.values() if live.drawing is None]
        if waiting and not self._workers.ready:
            return _UNREADY
        now = self._rules.clock()
        return min([_HOUSEKEEPING, *(max(0.0, live.deadline - now) for live in waiting if live.deadline is not None)])

    async def _end_late(self) -> None:
        now = self._rules.clock()
        for live in list(self._live.values()):
            if live.drawing is None and live.deadline is not None and live.deadline <= now:
                await self._attempts.fail(live, DeadlineError("the deadline passed before a worker was free"))
                self._forget(live, await self._as_stored(live.job), served=False)

    async def _tidy(self) -> float:
        """Forget expired jobs and files; seconds until it is time again."""
        for job in await self._store.expire(self._rules.now()):
            await asyncio.to_thread(self._attempts.remove, job.files)
        await asyncio.to_thread(self._files.expire, self._rules.keep)  # what links led to
        await self._store.forget()
        return _HOUSEKEEPING

    def _begin(self, job: Job) -> None:
        live = self._live.get(job.id)
        if live is None:
            return  # cancelled or deleted while it was being claimed
        live.job = job
        live.drawing = asyncio.create_task(self._attempts.draw(live))
        task = asyncio.create_task(self._attend(live, live.drawing))
        self._attending.add(task)
        task.add_done_callback(partial(self._attended, live))

    async def _attend(self, live: Live, drawing: asyncio.Task[None]) -> None:
        """See a running job to its end, whatever that is."""
        await asyncio.wait({drawing})
        error = None if drawing.cancelled() else drawing.exception()
        if error is not None:
            self._admission.poison.note(stored_request(live.job, self._rules.spec), error)
        while True:
            try:
                if drawing.cancelled():
                    await self._attempts.put_back(live)
                elif error is not None:
                    await self._attempts.fail(live, error)
                break
            except StorageError:
                logger.exception("the store refuses to note the end of job %s", live.job.id)
                if self._held:  # the next server finds it unfinished, and recovers it
                    break
                await asyncio.sleep(_PATIENCE)
        self._forget(live, await self._as_stored(live.job), served=error is None and not drawing.cancelled())

    def _attended(self, live: Live, task: asyncio.Task[None]) -> None:
        self._attending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # What it was to write down, the store decides at the next start; its place is free now.
            logger.error("job %s could not be seen to its end", live.job.id, exc_info=error)
            self._metrics.failed("ending a job")
            self._forget(live, live.job, served=False)
        self._starting.wake()  # there is room for the next

    async def _as_stored(self, job: Job) -> Job:
        """The job as it is now; a deleted one as its watchers are told."""
        with suppress(StorageError):
            return await self._store.get(job.tenant, job.id, self._rules.now()) or _gone(job)
        return job

    def _stop(self, job: Job) -> None:
        """The store has it that the job is over: stop its work, or forget it if it has none."""
        live = self._live.get(job.id)
        if live is None:
            return
        self._metrics.cancelled("queued" if live.drawing is None else "running")
        self._attempts.count(job, "cancelled")
        if live.drawing is None:
            self._forget(live, job, served=False)
        _interrupt(live)

    def _forget(self, live: Live, job: Job, served: bool) -> None:
        if self._live.pop(live.job.id, None) is not None:
            live.end(job, served)


def _interrupt(live: Live) -> None:
    """Stop the drawing of a job, unless its result is being stored: the store decides what becomes of that."""
    if live.drawing is not None and not live.finishing:
        live.drawing.cancel()


def _gone(job: Job) -> Job:
    return replace(job, state="failed", error=CANCELLED)
