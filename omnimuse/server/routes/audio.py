"""/v1/audio: a sound at once, as a file or as it grows; and sounds as durable jobs, as videos are.

`/v1/audio/generate` is vLLM-Omni's path and words. A job that failed is an answer, not an error: it is read with status
200. What belongs to another key does not exist. A model that makes no sound answers every path here with the reason.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.deploy.wire import Finished, Grown, MadeFile, Previewed, Stepped
from omnimuse.server.errors import ApiError, refusal
from omnimuse.server.http.bodies import Upload, is_form, read_any
from omnimuse.server.http.download import MEDIA, Sent, download
from omnimuse.server.http.enclosed import Parcel
from omnimuse.server.http.sse import Event, EventStream
from omnimuse.server.http.uploads import uploaded
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.row import Job
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    check_model,
    check_task,
    contents,
    draw,
    finished,
    opened,
    read_sounds,
    refuse_key,
    taken,
)
from omnimuse.server.protocol import audio as protocol
from omnimuse.server.routes.absent import Handler, for_tasks
from omnimuse.server.routes.image_jobs import idempotency_of
from omnimuse.server.routes.kept import PAGES, PREVIEWS, asked_page, job_error, poll_after, rounded
from omnimuse.server.service import Service
from omnimuse.server.translate import answers
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.asks import patience, settled, to_form, to_request

TASK, FROM_SOUND = "text-to-audio", "audio-to-audio"
JOBS = "/v1/audio/generations"
OPERATIONS = (
    Operation(
        "POST",
        "/v1/audio/generate",
        "Make a sound and answer with the file; with stream_format=sse, with the sound as it grows.",
        body=protocol.AudioRequest,
        form=True,
        responses={200: "audio/wav"},
    ),
    Operation(
        "POST",
        JOBS,
        "Make a sound. The answer is a job that is on disk.",
        body=protocol.AudioRequest,
        form=True,
        responses={200: protocol.Audio},
    ),
    Operation("GET", JOBS, "Sounds, newest first.", responses={200: protocol.AudioList}, query=PAGES),
    Operation("GET", JOBS + "/{id}", "How a sound is getting on.", responses={200: protocol.Audio}),
    Operation("GET", JOBS + "/{id}/content", "The file; ranges are honoured.", responses={200: "audio/wav"}),
    Operation("GET", JOBS + "/{id}/events", "Progress and looks, as they come.", responses={200: "text/event-stream"}),
    Operation("POST", JOBS + "/{id}/cancel", "Stop a sound; it fails as cancelled.", responses={200: protocol.Audio}),
    Operation("DELETE", JOBS + "/{id}", "Remove a sound.", responses={200: protocol.AudioDeleted}),
)


def routes(service: Service) -> list[Route]:
    """The endpoints of sounds."""
    sounds = Sounds(service)

    paths: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/audio/generate", sounds.at_once),
        ("POST", JOBS, sounds.create),
        ("GET", JOBS, sounds.listed),
        ("GET", JOBS + "/{id}", sounds.show),
        ("DELETE", JOBS + "/{id}", sounds.delete),
        ("GET", JOBS + "/{id}/content", sounds.content),
        ("GET", JOBS + "/{id}/events", sounds.events),
        ("POST", JOBS + "/{id}/cancel", sounds.cancel),
    ]
    tasks = (TASK, FROM_SOUND)
    return [Route(path, for_tasks(service, tasks, handler), methods=[method]) for method, path, handler in paths]


class Sounds:
    """The handlers; each takes a request and answers it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def at_once(self, request: Request) -> Response:
        """POST /v1/audio/generate: the file, or a stream; the work stops when the client goes."""
        refuse_key(request)
        _, _, order = await self._read(request)
        request.state.lease.close()
        if order.wanted.delivery.stream:
            return await opened(self._grown(order))
        made = await cancel_on_disconnect(request, finished(self._service, order))
        [sound] = made.files
        suffix = sound.name.rpartition(".")[2]
        headers = {
            **answers.Made.of(made).headers(order.wanted.warnings),
            "content-type": MEDIA[suffix],
            "content-length": str(sound.bytes),
            "content-disposition": f'attachment; filename="sound.{suffix}"',
        }
        [file] = await taken(self._service.files, made.files)
        return Sent(file, sound.bytes, 200, headers)

    async def create(self, request: Request) -> Response:
        """POST /v1/audio/generations: accept a job."""
        fields, uploads, order = await self._read(request)
        if order.wanted.delivery.stream:
            message = f"follow a job at {JOBS}/{{id}}/events, or use /v1/audio/generate"
            raise refusal("conflicting_parameters", message, "stream_format")
        idem = await idempotency_of(request, fields, uploads)
        request.state.lease.close()
        jobs, asked = self._service.jobs, order.request
        detail = {"request": asked.id, "warnings": list(order.wanted.warnings)}
        job = await jobs.submit(request.state.tenant, asked, order.form, "audio", detail, idem)
        replayed = {} if job.work.detail["request"] == asked.id else {"idempotent-replayed": "true"}
        return self._answer(job, {"location": f"{JOBS}/{job.id}", **replayed})

    async def listed(self, request: Request) -> Response:
        """GET: a page of them."""
        jobs, more = await self._service.jobs.page(request.state.tenant, "audio", asked_page(request))
        page = protocol.AudioList(
            data=[self._sound(job) for job in jobs],
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=more,
        )
        return JSONResponse(page.model_dump())

    async def show(self, request: Request) -> Response:
        """GET: one of them."""
        return self._answer(await self._job(request))

    async def content(self, request: Request) -> Response:
        """GET or HEAD: the file."""
        job = await self._job(request)
        if job.state != "completed":
            why = f"failed: {job.error.message}" if job.error else f"is {job.state.replace('_', ' ')}"
            raise refusal("audio_not_ready", f"the sound {why}; only a completed one has content", "id")
        [file] = job.files
        path = self._service.files.path(file.name)
        try:
            return await download(request, path, f"{job.id}{path.suffix}", file.sha256)
        except FileNotFoundError:
            raise _unknown(request) from None

    async def events(self, request: Request) -> Response:
        """GET: what happens to it, as it happens."""
        return EventStream(self._events(await self._job(request)), done=True)

    async def cancel(self, request: Request) -> Response:
        """POST: stop it; a sound that has ended stays as it is."""
        await self._job(request)
        job = await self._service.jobs.cancel(request.state.tenant, request.path_params["id"])
        if job is None:
            raise _unknown(request)
        return self._answer(job)

    async def delete(self, request: Request) -> Response:
        """DELETE, stopping it if it runs."""
        job = await self._job(request)
        if not await self._service.jobs.delete(request.state.tenant, job.id):
            raise _unknown(request)
        return JSONResponse(protocol.AudioDeleted(id=job.id).model_dump())

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> tuple[dict[str, Any], dict[str, list[Upload]], Order]:
        """The fields and files of a request for a sound, and what they ask of the model."""
        service, door = self._service, self._service.door
        fields, uploads = await read_any(request)
        wanted = settled(read(fields, "audio", door, form=is_form(request), files=uploads), door)
        check_model(service, wanted.model)
        sources = uploaded(uploads, ())
        check_task(service, FROM_SOUND if sources else TASK)
        recordings = await read_sounds(service, request, sources) if sources else ()
        stream = wanted.delivery.stream
        looks = PREVIEWS if request.url.path == JOBS else 0
        asked = to_request(wanted, door, request.state.tenant, looks, {"sounds": recordings})
        waits = None if stream else patience(request.headers)
        form_ = to_form(wanted, service.options.guard.tell)
        task = FROM_SOUND if recordings else TASK
        order = Order(wanted, replace(asked, chunks=stream), form_, waits, task, request.state.request_id)
        return fields, uploads, order

    async def _job(self, request: Request) -> Job:
        job = await self._service.jobs.get(request.state.tenant, request.path_params["id"])
        if job is None or job.kind != "audio":
            raise _unknown(request)
        return job

    # -- telling -----------------------------------------------------------------------------------------------------

    async def _grown(self, order: Order) -> AsyncGenerator[Event, None]:
        """Steps, pieces of the sound as they are finished, and the whole as a file; the first is for `opened`.

        Of a sound that is made once more, because its worker was lost, no piece is told twice.
        """
        told = -1
        async with aclosing(draw(self._service, order)) as updates:
            async for update in updates:
                match update:
                    case Admitted():
                        yield None, None
                    case Stepped():
                        yield _told(
                            protocol.AudioProgressEvent(
                                status="in_progress", stage=update.stage, step=update.step, steps=update.steps
                            )
                        )
                    case Grown() if update.start > told:
                        told = update.start
                        yield _told(_delta(update))
                    case Finished():
                        with await contents(self._service.files, update.files) as files:
                            done = _done(update.files[0], files.words[0], update.timings)
                            yield done.type, Parcel(done.model_dump(), files)

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
                    yield _told(protocol.AudioPreviewEvent(id=job.id, step=item.step, b64_json=picture))
                else:
                    running = self._service.jobs.current(replace(job, state="in_progress"))
                    yield self._progress(running, item)

    def _progress(self, job: Job, step: Stepped | None = None) -> Event:
        return _told(
            protocol.AudioProgressEvent(
                id=job.id,
                status=job.state,
                progress=job.progress,
                stage=None if step is None else step.stage,
                step=None if step is None else step.step,
                steps=None if step is None else step.steps,
                eta_seconds=rounded(self._service.jobs.eta(job)),
            )
        )

    def _ended(self, job: Job) -> Event:
        sound = self._sound(job)
        completed = job.state == "completed"
        return _told(protocol.AudioEndedEvent(type="audio.completed" if completed else "audio.failed", audio=sound))

    def _answer(self, job: Job, headers: dict[str, str] | None = None) -> Response:
        """A sound as JSON, with the time after which it makes sense to ask again."""
        sound, headers = self._sound(job), dict(headers or {})
        if not job.ended:
            headers["openai-poll-after-ms"] = poll_after(sound.eta_seconds)
        return JSONResponse(sound.model_dump(), headers=headers)

    def _sound(self, job: Job) -> protocol.Audio:
        params, times = job.work.request["params"], job.times
        made = job.files[0] if job.files else None
        limits = self._service.door.limits.sound
        return protocol.Audio(
            id=job.id,
            model=job.work.model,
            status=job.state,
            progress=job.progress,
            created_at=int(times.created),
            completed_at=int(times.finished) if times.finished and job.state == "completed" else None,
            expires_at=int(times.expires) if times.expires else None,
            prompt=job.work.request["prompt"],
            seconds=params["seconds"] if made is None else made.seconds,
            sample_rate=limits.rate if limits is not None else None,
            format=job.work.form.format.lower(),
            error=job_error(job),
            seed=params["seed"],
            eta_seconds=rounded(self._service.jobs.eta(job)),
            timings=job.timings or None,
            peak_memory_mb=answers.Made.of(job).memory_mb,
            warnings=answers.told([*job.work.detail.get("warnings", ()), *job.remarks.warnings]),
        )


def _told(event: Any) -> Event:
    return event.type, event.model_dump(exclude_none=True)


def _delta(piece: Grown) -> protocol.AudioDeltaEvent:
    return protocol.AudioDeltaEvent(
        audio=base64.b64encode(piece.data).decode(),
        start=piece.start,
        sample_rate=piece.rate,
        channels=piece.channels,
    )


def _done(made: MadeFile, content: str, timings: dict[str, float]) -> protocol.AudioDoneEvent:
    return protocol.AudioDoneEvent(
        audio=content,
        format=made.name.rpartition(".")[2],
        seconds=made.seconds or 0.0,
        sample_rate=made.rate or 0,
        seed=made.seed,
        timings={name: round(seconds, 4) for name, seconds in timings.items()},
    )


def _unknown(request: Request) -> ApiError:
    name = request.path_params["id"][:80]
    return refusal("audio_not_found", f"there is no sound {name!r}; it never was, was removed, or has expired", "id")
