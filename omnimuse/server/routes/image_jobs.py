"""Pictures as durable jobs: answers with the job itself, waits for it, streams it, shows and removes it.

`routes/images.py` comes here for `background: true` and for an Idempotency-Key: a job is committed before it is
answered, goes on when its client goes, and the same key gives the same answer for a day.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from omnimuse.server.errors import CODES, ApiError, refusal
from omnimuse.server.http.bodies import Upload
from omnimuse.server.http.enclosed import Enclosed, JSONWithFiles
from omnimuse.server.http.picture_file import picture_file
from omnimuse.server.http.sse import Event
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.row import Idempotency, Job, Trouble
from omnimuse.server.orders.order import Order, opened
from omnimuse.server.protocol import images as protocol
from omnimuse.server.routes.files import Links
from omnimuse.server.service import Service
from omnimuse.server.translate import answers

MAX_KEY = 255
"""Characters of an Idempotency-Key."""


async def idempotency_of(
    request: Request, fields: dict[str, Any], uploads: Mapping[str, Sequence[Upload]] = MappingProxyType({})
) -> Idempotency | None:
    """The key that the client chose for this request, with a hash of what it asks; ApiError 400 for a bad key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        message = f"an Idempotency-Key has 1 to {MAX_KEY} printable ASCII characters; this one has {len(key)}"
        raise refusal("invalid_value", message, "idempotency-key")
    return Idempotency(key, await asyncio.to_thread(_digest, request.url.path, fields, uploads))


def _digest(path: str, fields: dict[str, Any], uploads: Mapping[str, Sequence[Upload]]) -> str:
    """What tells one request from another."""
    files = {name: [hashlib.sha256(part.content).hexdigest() for part in parts] for name, parts in uploads.items()}
    asked = json.dumps([path, fields, *([files] if files else [])], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def look_of(order: Order) -> answers.Look:
    """What the answer to `order` repeats of it; an order with pictures is an edit."""
    return answers.Look.of(order.wanted, "image_edit" if order.request.images else "image_generation")


class ImageJobs:
    """The picture jobs of one server."""

    def __init__(self, service: Service, links: Links) -> None:
        self._service, self._links = service, links

    async def answer(self, request: Request, order: Order, idem: Idempotency | None) -> Response:
        """Accept `order` as a job, and answer as it asks: with the job, a stream, or the pictures at the end."""
        look = look_of(order)
        detail = answers.keepsake(look, order.request.id)
        tenant, names = request.state.tenant, order.wanted.names
        job = await self._service.jobs.submit(tenant, order.request, order.form, "image", detail, idem, names)
        headers = {"location": f"/v1/images/{job.id}"}
        if answers.remembered(job.work.detail)[1] != order.request.id:
            headers["idempotent-replayed"] = "true"
        if order.wanted.delivery.stream:
            stream = await opened(self._events(order, job))
            stream.headers.update(headers)
            return stream
        if order.wanted.delivery.durable:
            return await self._described(request, job, headers, look.safety_identifier)
        job = await cancel_on_disconnect(request, self._end_of(job))
        headers |= answers.Made.of(job).headers(answers.remembered(job.work.detail)[0].warnings)
        return await self._with_result(request, job, {}, headers, look.safety_identifier)

    async def show(self, request: Request) -> Response:
        """GET: the job as it stands; at its end with the pictures. A failed job is an answer, not an error."""
        job = await self._service.jobs.get(request.state.tenant, request.path_params["id"])
        if job is None or job.kind != "image":
            raise _unknown(request)
        headers = {}
        if (left := self._service.jobs.eta(job)) is not None:
            headers["openai-poll-after-ms"] = str(int(1000 * min(max(left, 0.1), 10.0)))
        return await self._described(request, job, headers)

    async def delete(self, request: Request) -> Response:
        """DELETE: stop the job if it runs, and remove it with its pictures."""
        tenant, job_id = request.state.tenant, request.path_params["id"]
        job = await self._service.jobs.get(tenant, job_id)
        if job is None or job.kind != "image" or not await self._service.jobs.delete(tenant, job_id):
            raise _unknown(request)
        return JSONResponse(protocol.dump(protocol.ImageDeleted(id=job_id)))

    async def _end_of(self, job: Job) -> Job:
        """`job` when it is completed; ApiError with the reason when it is not to be."""
        async with aclosing(self._service.jobs.subscribe(job)) as news:
            async for item in news:
                if isinstance(item, Job):
                    job = item
        return _completed(job)

    async def _events(self, order: Order, job: Job) -> AsyncGenerator[Event, None]:
        """What happens to the job from now on, and its pictures; those who repeat a request see the rest of it."""
        look, _ = answers.remembered(job.work.detail)
        look = replace(look, safety_identifier=order.wanted.delivery.safety_identifier)
        delivery = order.wanted.delivery
        events = answers.Events(order.request, look, delivery.partial_images, delivery.progress)
        async with aclosing(self._service.jobs.subscribe(job)) as news:
            yield None, None
            async for item in news:
                if isinstance(item, Job):
                    job = _completed(item)
                    continue
                for event in events.see(item):
                    yield event
        with await self._contents(job) as pictures:
            for event in events.completed(self._service.door, answers.Made.of(job), pictures):
                yield event

    async def _described(
        self, request: Request, job: Job, headers: Mapping[str, str], asker: str | None = None
    ) -> Response:
        times = job.times
        done = job.state == "completed"
        made, (look, _) = answers.Made.of(job), answers.remembered(job.work.detail)
        described = protocol.ImageJob(
            id=job.id,
            model=self._service.options.model_name,
            status=job.state,
            progress=job.progress,
            created_at=int(times.created),
            completed_at=int(times.finished) if done and times.finished else None,
            expires_at=int(times.expires) if times.expires else None,
            error=None if job.error is None else _job_error(job.error),
            inference_time_s=made.work_seconds if done else None,
            stage_durations=job.timings or None,
            peak_memory_mb=made.memory_mb,
            needs_memory_mb=made.needs_mb,
            warnings=answers.told([*look.warnings, *made.remarks.warnings]),
        )
        if done:
            return await self._with_result(request, job, protocol.dump(described), headers, asker)
        return JSONResponse(protocol.dump(described), headers=headers)

    async def _with_result(
        self, request: Request, job: Job, described: dict[str, Any], headers: Mapping[str, str], asker: str | None
    ) -> Response:
        """The pictures of a completed job, the same answer every time it is asked for; within `described`, if given.

        `asker` is the safety identifier of this request, not of the one that made the job: that was not kept.
        """
        look, _ = answers.remembered(job.work.detail)
        look = replace(look, safety_identifier=asker)
        until, created = job.times.expires or 0.0, job.times.finished or 0.0

        def answer(places: list[dict[str, str]]) -> dict[str, Any]:
            result = answers.response(self._service.door, look, answers.Made.of(job), places, created, job.id)
            return {**described, "result": result} if described else result

        if look.transport == "file" and not described:
            return await picture_file(self._service.files, job.files, await self._opened(job), headers)
        if look.transport == "url":
            base = str(request.base_url)
            links = [{"url": self._links.url(base, file.name, until)} for file in job.files]
            return JSONResponse(answer(links), headers=headers)
        pictures = await self._contents(job)
        return JSONWithFiles(answer([{"b64_json": word} for word in pictures.words]), pictures, headers)

    async def _contents(self, job: Job) -> Enclosed:
        return Enclosed(await self._opened(job))

    async def _opened(self, job: Job) -> list[BinaryIO]:
        paths = [self._service.files.path(file.name) for file in job.files]
        try:
            return await asyncio.to_thread(_opened, paths)
        except FileNotFoundError:
            raise refusal("image_not_found", "the pictures of this job are no longer kept") from None


def _opened(paths: Sequence[Path]) -> list[BinaryIO]:
    with ExitStack() as files:
        found: list[BinaryIO] = [files.enter_context(path.open("rb")) for path in paths]
        files.pop_all()
        return found


def _job_error(trouble: Trouble) -> protocol.JobError:
    kind = CODES[trouble.code].type
    return protocol.JobError(code=trouble.code, message=trouble.message, param=trouble.param, type=kind)


def _completed(job: Job) -> Job:
    if job.state == "completed":
        return job
    if job.error is not None:
        raise refusal(job.error.code, job.error.message, job.error.param)
    raise refusal("server_draining", f"the server is shutting down; the job is kept: ask for /v1/images/{job.id} later")


def _unknown(request: Request) -> ApiError:
    name = request.path_params["id"][:80]
    return refusal(
        "image_not_found", f"there is no picture job {name!r}; it never was, was removed, or has expired", "id"
    )
