"""/v1/audio: a sound at once, as a file or as it grows; and sounds as durable jobs, as videos are.

`/v1/audio/generate` is vLLM-Omni's path and words. A model that makes no sound answers every path here with the reason.
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

from omnimuse.deploy.wire import Finished, Grown, Stepped
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import Upload, is_form, read_any
from omnimuse.server.http.download import MEDIA, Sent, download
from omnimuse.server.http.enclosed import Parcel
from omnimuse.server.http.sse import Event
from omnimuse.server.http.uploads import uploaded
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.row import Job
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    asked_of,
    check_model,
    check_task,
    contents,
    draw,
    finished,
    opened,
    read_sounds,
    refuse_blocks,
    refuse_key,
    taken,
)
from omnimuse.server.protocol import audio as protocol
from omnimuse.server.protocol.images import dump
from omnimuse.server.routes.absent import Handler, for_tasks
from omnimuse.server.routes.image_jobs import idempotency_of
from omnimuse.server.routes.kept import PAGES, PREVIEWS, KeptJobs, Kind, event_of
from omnimuse.server.service import Service
from omnimuse.server.translate import answers
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.asks import patience, settled, to_form

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
        ("GET", JOBS + "/{id}", sounds.kept.show),
        ("DELETE", JOBS + "/{id}", sounds.kept.delete),
        ("GET", JOBS + "/{id}/content", sounds.content),
        ("GET", JOBS + "/{id}/events", sounds.kept.events),
        ("POST", JOBS + "/{id}/cancel", sounds.kept.cancel),
    ]
    tasks = (TASK, FROM_SOUND)
    return [Route(path, for_tasks(service, tasks, handler), methods=[method]) for method, path, handler in paths]


class Sounds:
    """The handlers; each takes a request and answers it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.kept = KeptJobs(
            service,
            Kind(
                "audio",
                "sound",
                JOBS,
                "audio_not_found",
                "audio_not_ready",
                self._sound,
                protocol.AudioDeleted,
                protocol.AudioProgressEvent,
                protocol.AudioPreviewEvent,
                self._ended,
            ),
        )

    async def at_once(self, request: Request) -> Response:
        """POST /v1/audio/generate: the file, or a stream; the work stops when the client goes."""
        refuse_key(request)
        _, _, order = await self._read(request)
        request.state.lease.close()
        if order.wanted.delivery.stream:
            return await opened(self._grown(order))
        refuse_blocks(order.wanted, f"stream_format=sse, or a job at {JOBS},")
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
        detail = {"request": order.request.id, "warnings": list(order.wanted.warnings)}
        return await self.kept.accept(request, order, detail, idem)

    async def listed(self, request: Request) -> Response:
        """GET: a page of them."""
        jobs, ends = await self.kept.page(request)
        return JSONResponse(protocol.AudioList(data=[self._sound(job) for job in jobs], **ends).model_dump())

    async def content(self, request: Request) -> Response:
        """GET or HEAD: the file."""
        job = await self.kept.job(request)
        file = self.kept.file(job)
        path = self._service.files.path(file.name)
        try:
            return await download(request, path, f"{job.id}{path.suffix}", file.sha256)
        except FileNotFoundError:
            raise self.kept.unknown(request) from None

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _read(self, request: Request) -> tuple[dict[str, Any], dict[str, list[Upload]], Order]:
        """The fields and files of a request for a sound, and what they ask of the model."""
        service, door = self._service, self._service.door
        fields, uploads = await read_any(request)
        wanted = settled(read(fields, "audio", door, form=is_form(request), files=uploads), door)
        check_model(service, wanted.model)
        sources = uploaded(uploads, ())
        # To a model that speaks a sound is no beginning, but whose voice it is.
        task = FROM_SOUND if sources and door.limits.speech is None else TASK
        check_task(service, task)
        recordings = await read_sounds(service, request, sources) if sources else ()
        stream = wanted.delivery.stream
        looks = PREVIEWS if request.url.path == JOBS else 0
        asked = asked_of(service, wanted, request, looks, {"sounds": recordings})
        waits = None if stream else patience(request.headers)
        form_ = to_form(wanted, service.options.guard.tell)
        order = Order(wanted, replace(asked, chunks=stream), form_, waits, task, request.state.request_id)
        return fields, uploads, order

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
                        where = {"stage": update.stage, "step": update.step, "steps": update.steps}
                        yield event_of(protocol.AudioStepEvent.model_validate(where))
                    case Grown() if update.start > told:
                        told = update.start
                        yield event_of(_delta(update))
                    case Finished():
                        with await contents(self._service.files, update.files) as files:
                            done = _done(update, files.words[0])
                            yield done.type, Parcel(dump(done), files)

    def _ended(self, job: Job) -> protocol.AudioEndedEvent:
        completed = job.state == "completed"
        return protocol.AudioEndedEvent(type="audio.completed" if completed else "audio.failed", audio=self._sound(job))

    def _sound(self, job: Job) -> protocol.Audio:
        made, limits = job.files[0] if job.files else None, self._service.door.limits.sound
        return protocol.Audio(
            **self.kept.described(job),
            seconds=job.work.request["params"]["seconds"] if made is None else made.seconds,
            sample_rate=limits.rate if limits is not None else None,
            format=job.work.form.format.lower(),
            peak_memory_mb=answers.Made.of(job).memory_mb,
            needs_memory_mb=answers.Made.of(job).needs_mb,
            warnings=answers.told([*job.work.detail.get("warnings", ()), *job.remarks.warnings]),
        )


def _delta(piece: Grown) -> protocol.AudioDeltaEvent:
    return protocol.AudioDeltaEvent(
        audio=base64.b64encode(piece.data).decode(),
        start=piece.start,
        sample_rate=piece.rate,
        channels=piece.channels,
    )


def _done(whole: Finished, content: str) -> protocol.AudioDoneEvent:
    made = whole.files[0]
    return protocol.AudioDoneEvent(
        audio=content,
        format=made.name.rpartition(".")[2],
        seconds=made.seconds or 0.0,
        sample_rate=made.rate or 0,
        seed=made.seed,
        timings=answers.Made.of(whole).seconds,
        **answers.Made.of(whole).within,
    )
