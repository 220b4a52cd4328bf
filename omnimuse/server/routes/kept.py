"""What the routes of videos and of sounds share: their jobs are listed, waited for, told, stopped and removed alike.

A job that failed is an answer, not an error: it is read with status 200. What belongs to another key does not exist.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnimuse.deploy.wire import MadeFile, Previewed, Stepped
from omnimuse.server.errors import CODES, ApiError, refusal
from omnimuse.server.http.sse import Event, EventStream
from omnimuse.server.jobs.row import Idempotency, Job, Page
from omnimuse.server.jobs.row import Kind as Named
from omnimuse.server.orders.order import Order
from omnimuse.server.protocol.images import JobError
from omnimuse.server.protocol.kept import Deleted, Ended, Looked, Progressed
from omnimuse.server.service import Service
from omnimuse.server.translate.answers import Made

PREVIEWS = 8
"""How many looks a watcher gets at an unfinished output, at least where it has as many steps."""
POLLS = 10
"""How often a client is told to ask for a job, over the time it takes; clients keep the first interval they hear."""
MAX_PAGE = 100
PAGES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        "order": {"type": "string", "enum": ["asc", "desc"]},
    }
)
"""The query of a list, for the OpenAPI document."""


@dataclass(frozen=True)
class Kind:
    """A kind of jobs: its name in the book, what people call one, where they are, the codes of one that is not there
    or not done, and how one is told.
    """

    name: Named
    noun: str
    path: str
    not_found: str
    not_ready: str
    told: Callable[[Job], BaseModel]
    deleted: type[Deleted]
    progressed: type[Progressed]
    looked: type[Looked]
    ended: Callable[[Job], Ended]


class KeptJobs:
    """The handlers that all kinds share; each takes a request and answers it."""

    def __init__(self, service: Service, kind: Kind) -> None:
        self._service, self._kind = service, kind

    async def accept(
        self, request: Request, order: Order, detail: dict[str, Any], idem: Idempotency | None
    ) -> Response:
        """Put `order` on disk and answer with the job. The same key gives the job that it gave before."""
        tenant, asked, kind, names = request.state.tenant, order.request, self._kind, order.wanted.names
        job = await self._service.jobs.submit(tenant, asked, order.form, kind.name, detail, idem, names)
        replayed = {} if job.work.detail["request"] == asked.id else {"idempotent-replayed": "true"}
        return self._answer(job, {"location": f"{kind.path}/{job.id}", **replayed})

    async def page(self, request: Request) -> tuple[list[Job], dict[str, Any]]:
        """The jobs that a list asks for, and what the list tells of itself."""
        jobs, more = await self._service.jobs.page(request.state.tenant, self._kind.name, asked_page(request))
        ends = {"first_id": jobs[0].id, "last_id": jobs[-1].id} if jobs else {"first_id": None, "last_id": None}
        return jobs, {**ends, "has_more": more}

    async def show(self, request: Request) -> Response:
        """GET: one of them."""
        return self._answer(await self.job(request))

    async def events(self, request: Request) -> Response:
        """GET: what happens to it, as it happens."""
        return EventStream(self._events(await self.job(request)), done=True)

    async def cancel(self, request: Request) -> Response:
        """POST: stop it; one that has ended stays as it is."""
        await self.job(request)
        job = await self._service.jobs.cancel(request.state.tenant, request.path_params["id"])
        if job is None:
            raise self.unknown(request)
        return self._answer(job)

    async def delete(self, request: Request) -> Response:
        """DELETE, stopping it if it runs."""
        job = await self.job(request)
        if not await self._service.jobs.delete(request.state.tenant, job.id):
            raise self.unknown(request)
        return JSONResponse(self._kind.deleted(id=job.id).model_dump())

    async def job(self, request: Request) -> Job:
        """The one that the path names; ApiError 404 where there is none, or not for this key."""
        job = await self._service.jobs.get(request.state.tenant, request.path_params["id"])
        if job is None or job.kind != self._kind.name:
            raise self.unknown(request)
        return job

    def file(self, job: Job) -> MadeFile:
        """What it made; ApiError while it is not completed."""
        if job.state != "completed":
            why = f"failed: {job.error.message}" if job.error else f"is {job.state.replace('_', ' ')}"
            message = f"the {self._kind.noun} {why}; only a completed one has content"
            raise refusal(self._kind.not_ready, message, "id")
        [file] = job.files
        return file

    def unknown(self, request: Request) -> ApiError:
        """What is said of one that is not there."""
        name = request.path_params["id"][:80]
        message = f"there is no {self._kind.noun} {name!r}; it never was, was removed, or has expired"
        return refusal(self._kind.not_found, message, "id")

    def described(self, job: Job) -> dict[str, Any]:
        """What every kind tells of a job."""
        times, done = job.times, job.state == "completed"
        return {
            "id": job.id,
            "model": job.work.model,
            "status": job.state,
            "progress": job.progress,
            "created_at": int(times.created),
            "completed_at": int(times.finished) if times.finished and done else None,
            "expires_at": int(times.expires) if times.expires else None,
            "prompt": job.work.request["prompt"],
            "error": job_error(job),
            "seed": job.work.request["params"]["seed"],
            "eta_seconds": self._left(job),
            "timings": Made.of(job).seconds or None,
            **Made.of(job).within,
        }

    def _left(self, job: Job) -> float | None:
        left = self._service.jobs.eta(job)
        return None if left is None else round(left, 2)

    def _answer(self, job: Job, headers: Mapping[str, str] = MappingProxyType({})) -> Response:
        """The job as JSON, with the time after which it makes sense to ask again."""
        told = self._kind.told(job).model_dump()
        polls = {} if job.ended else {"openai-poll-after-ms": poll_after(told["eta_seconds"])}
        return JSONResponse(told, headers={**headers, **polls})

    async def _events(self, job: Job) -> AsyncGenerator[Event, None]:
        """The state, then what happens, then the end. A server that shuts down ends the stream with the state."""
        async with aclosing(self._service.jobs.subscribe(job)) as news:
            if not job.ended:
                yield self._progress(job)
            async for item in news:
                if isinstance(item, Job):
                    yield self._ended(item) if item.ended else self._progress(item)
                elif isinstance(item, Previewed):
                    picture = base64.b64encode(item.picture).decode()
                    yield event_of(self._kind.looked(id=job.id, step=item.step, b64_json=picture))
                else:
                    running = self._service.jobs.current(replace(job, state="in_progress"))
                    yield self._progress(running, item)

    def _progress(self, job: Job, step: Stepped | None = None) -> Event:
        told = self._kind.progressed(
            id=job.id,
            status=job.state,
            progress=job.progress,
            stage=None if step is None else step.stage,
            step=None if step is None else step.step,
            steps=None if step is None else step.steps,
            eta_seconds=self._left(job),
        )
        return event_of(told)

    def _ended(self, job: Job) -> Event:
        event = self._kind.ended(job)
        return event.type, event.model_dump()


def event_of(event: Any) -> Event:
    """An event of a stream, without what is not known."""
    return event.type, event.model_dump(exclude_none=True)


def job_error(job: Job) -> JobError | None:
    """Why it failed, as clients are told."""
    error = job.error
    if error is None:
        return None
    return JobError(code=error.code, message=error.message, param=error.param, type=CODES[error.code].type)


def asked_page(request: Request) -> Page:
    """`after`, `limit` and `order` of the query; ApiError for anything else."""
    query = request.query_params
    for name in query:
        if name not in PAGES:
            raise refusal("unknown_parameter", f"a list knows after, limit and order, not {name[:40]!r}", name[:40])
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_PAGE):
        raise refusal("invalid_value", f"limit={limit[:40]!r} is not allowed; use 1 to {MAX_PAGE}", "limit")
    if order not in ("asc", "desc"):
        raise refusal("invalid_value", f"order={order[:40]!r} is not allowed; use asc or desc", "order")
    return Page(query.get("after"), int(limit), order == "asc")


def poll_after(left: float | None) -> str:
    """The milliseconds after which it makes sense to ask again, when `left` seconds are; a header's value."""
    return str(1000 if left is None else int(1000 * min(max(left / POLLS, 0.25), 10)))
