"""/v1/videos: videos as durable jobs, to be polled, watched, cancelled, fetched and removed; and one at once.

A model that makes no videos answers every path here with the reason.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from omnimuse.core.request import Clip, Picture
from omnimuse.server.errors import ApiError, refusal, to_json
from omnimuse.server.http.bodies import Upload, is_form, read_any
from omnimuse.server.http.download import MEDIA, Sent, download
from omnimuse.server.http.uploads import Source, uploaded
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.row import Idempotency, Job
from omnimuse.server.jobs.stills import KINDS, Stills
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Order,
    asked_of,
    check_model,
    check_task,
    doubted,
    finished,
    read_mask,
    read_pictures,
    read_videos,
    refuse_blocks,
    refuse_key,
    taken,
)
from omnimuse.server.protocol import videos as protocol
from omnimuse.server.routes.absent import Handler, for_tasks
from omnimuse.server.routes.image_jobs import idempotency_of
from omnimuse.server.routes.kept import PAGES, PREVIEWS, KeptJobs, Kind
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import Part, Reels, Wanted, read
from omnimuse.server.translate.answers import Made, told
from omnimuse.server.translate.asks import patience, settled, video_form

FROM_TEXT, FROM_PICTURE, FROM_VIDEO = "text-to-video", "image-to-video", "video-to-video"
PATH = "/v1/videos"
LAST = "last_image"
"""The upload that is a video's last frame; any other picture is its first."""
FILMS, MASK, MASKS = ("video", "video_reference"), "mask", "video_mask"
"""The uploads that are a video to start from; that are a mask over it, for all frames or for each."""
OPERATIONS = (
    Operation(
        "POST",
        "/v1/videos",
        "Make a video from a text, its first frame, or another video. The answer is a job that is on disk.",
        body=protocol.VideoRequest,
        form=True,
        responses={200: protocol.Video},
    ),
    Operation(
        "POST",
        "/v1/videos/sync",
        "Make a video and answer with the file.",
        body=protocol.VideoRequest,
        form=True,
        responses={200: "video/mp4"},
    ),
    Operation(
        "GET",
        "/v1/videos",
        "Videos, newest first.",
        responses={200: protocol.VideoList},
        query=PAGES,
    ),
    Operation("GET", "/v1/videos/{id}", "How a video is getting on.", responses={200: protocol.Video}),
    Operation(
        "GET",
        "/v1/videos/{id}/content",
        "The file; ranges are honoured. A thumbnail is one frame as WEBP, a spritesheet up to 16 of them as JPEG.",
        responses={200: "video/mp4"},
        query={"variant": {"type": "string", "enum": ["video", *KINDS]}},
    ),
    Operation(
        "GET",
        "/v1/videos/{id}/events",
        "Progress and looks at frames, as they come.",
        responses={200: "text/event-stream"},
    ),
    Operation(
        "POST", "/v1/videos/{id}/cancel", "Stop a video; it fails as cancelled.", responses={200: protocol.Video}
    ),
    Operation("DELETE", "/v1/videos/{id}", "Remove a video.", responses={200: protocol.VideoDeleted}),
)


def routes(service: Service) -> list[Route]:
    """The endpoints of videos."""
    videos = Videos(service)

    paths: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/videos", videos.create),
        ("GET", "/v1/videos", videos.list),
        ("POST", "/v1/videos/sync", videos.at_once),
        ("GET", "/v1/videos/{id}", videos.kept.show),
        ("DELETE", "/v1/videos/{id}", videos.kept.delete),
        ("GET", "/v1/videos/{id}/content", videos.content),
        ("GET", "/v1/videos/{id}/events", videos.kept.events),
        ("POST", "/v1/videos/{id}/cancel", videos.kept.cancel),
    ]
    tasks = (FROM_TEXT, FROM_PICTURE, FROM_VIDEO)
    return [Route(path, for_tasks(service, tasks, handler), methods=[method]) for method, path, handler in paths]


class Videos:
    """The handlers; each takes a request and answers it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stills = Stills(service.files)
        self.kept = KeptJobs(
            service,
            Kind(
                "video",
                "video",
                PATH,
                "video_not_found",
                "video_not_ready",
                self._video,
                protocol.VideoDeleted,
                protocol.VideoProgressEvent,
                protocol.VideoPreviewEvent,
                self._ended,
            ),
        )

    async def create(self, request: Request) -> Response:
        """POST /v1/videos: accept a job."""
        order, idem = await self._read(request)
        request.state.lease.close()  # of what came, only the order is left
        return await self.kept.accept(request, order, remembered(order), idem)

    async def at_once(self, request: Request) -> Response:
        """POST /v1/videos/sync: the file itself; the work stops when the client goes."""
        refuse_key(request)
        order, _ = await self._read(request)
        refuse_blocks(order.wanted, f"a job at {PATH}")
        request.state.lease.close()
        made = await cancel_on_disconnect(request, finished(self._service, order))
        [video] = made.files
        headers = {
            **Made.of(made).headers(order.wanted.warnings),
            "content-type": MEDIA["mp4"],
            "content-length": str(video.bytes),
            "content-disposition": 'attachment; filename="video.mp4"',
        }
        [file] = await taken(self._service.files, made.files)
        return Sent(file, video.bytes, 200, headers)

    async def list(self, request: Request) -> Response:
        """GET /v1/videos: a page of them."""
        jobs, ends = await self.kept.page(request)
        return StreamingResponse(self._listed(protocol.VideoList(data=[], **ends), jobs), media_type="application/json")

    async def _listed(self, page: protocol.VideoList, jobs: Sequence[Job]) -> AsyncGenerator[bytes, None]:
        """The page with its videos, one after the other: a hundred long prompts at once keep everybody waiting."""
        head, tail = to_json(page.model_dump()).split(b'"data":[]', 1)
        yield head + b'"data":['
        for index, job in enumerate(jobs):
            yield b"," * (index > 0) + to_json(self._video(job).model_dump())
        yield b"]" + tail

    async def content(self, request: Request) -> Response:
        """GET or HEAD /v1/videos/{id}/content."""
        job = await self.kept.job(request)
        variant = request.query_params.get("variant", "video")
        if variant != "video" and variant not in KINDS:
            allowed = f"use video, {' or '.join(KINDS)}"
            raise refusal("invalid_value", f"variant={variant[:40]!r} is not known; {allowed}", "variant")
        file = self.kept.file(job)
        try:
            if variant == "video":
                return await download(request, self._service.files.path(file.name), f"{job.id}.mp4", file.sha256)
            still = await self._stills.find(file.name, variant, request.state.tenant)
            return await download(request, still, f"{job.id}{still.suffix}", f"{file.sha256}-{variant}")
        except FileNotFoundError:
            raise self.kept.unknown(request) from None

    async def _read(self, request: Request) -> tuple[Order, Idempotency | None]:
        """What is asked of the model. The bytes that came are in nobody's hands when this returns."""
        fields, uploads = await read_any(request)
        service, door = self._service, self._service.door
        wanted = read(fields, "video", door, form=is_form(request), files=uploads)
        check_model(service, wanted.model)
        reels = _named(uploads, FILMS, wanted.reels.video_urls)
        masks = _named(uploads, (MASKS,), wanted.reels.mask_urls), _named(uploads, (MASK,), wanted.part.mask_urls)
        besides = (*FILMS, MASK, MASKS)
        sources = _frames({name: found for name, found in uploads.items() if name not in besides}, wanted)
        task = FROM_VIDEO if reels else FROM_PICTURE if sources else FROM_TEXT
        if door.limits.min_images > len(sources):
            raise _lacking(sources)
        check_task(service, task)
        pictures = await read_pictures(service, request, sources) if sources else ()
        wanted = settled(wanted, door)
        clips = await read_videos(service, request, reels, wanted) if reels else ()
        came = {"images": pictures, "videos": clips, "mask": await self._mask(request, wanted, *masks)}
        asked = asked_of(service, wanted, request, PREVIEWS, came)
        wanted = replace(doubted(service, wanted, asked), urls=(), reels=Reels(), part=Part())
        form = video_form(service.options.guard.tell)
        order = Order(
            wanted,
            asked,
            form,
            patience(request.headers),
            task,
            request.state.request_id,
            request.headers.get("traceparent"),
        )
        return order, await idempotency_of(request, fields, uploads)

    async def _mask(
        self, request: Request, wanted: Wanted, films: Sequence[Source], pictures: Sequence[Source]
    ) -> Clip | Picture | None:
        """What is drawn anew of a video: one picture for all frames, or one for each."""
        if films and pictures:
            message = f"{pictures[0].name} and {films[0].name} are both a mask; leave one of them out"
            raise refusal("conflicting_parameters", message, films[0].name)
        if not films:
            return await read_mask(self._service, request, pictures)
        return (await read_videos(self._service, request, films, wanted, masks=True))[0]

    def _ended(self, job: Job) -> protocol.VideoEndedEvent:
        completed = job.state == "completed"
        return protocol.VideoEndedEvent(type="video.completed" if completed else "video.failed", video=self._video(job))

    def _video(self, job: Job) -> protocol.Video:
        params, made, detail = job.work.request["params"], Made.of(job), job.work.detail
        sides = params["width"], params["height"]
        frames, fps = int(params["num_frames"] or 1), float(params["fps"] or 1.0)
        length, done = f"{round(frames / fps, 3):.10g}", job.state == "completed"
        return protocol.Video(
            **self.kept.described(job),
            seconds=detail.get("seconds") or length,
            duration_s=float(length),
            file_name=f"{job.id}.mp4" if done else None,
            size="auto" if None in sides else f"{sides[0]}x{sides[1]}",
            num_frames=frames,
            fps=fps,
            stage_durations=job.timings or None,
            inference_time_s=made.work_seconds if done else None,
            peak_memory_mb=made.memory_mb,
            needs_memory_mb=made.needs_mb,
            warnings=told([*detail.get("warnings", ()), *made.remarks.warnings]),
        )


def _frames(uploads: Mapping[str, Sequence[Upload]], wanted: Wanted) -> list[Source]:
    """The pictures that came, the last frame at the end; ApiError for one alone, and for two that are first."""
    firsts = [name for name in uploads if name != LAST] + ([wanted.names["urls"]] if wanted.urls else [])
    if len(firsts) > 1:
        message = f"{firsts[0]} and {firsts[1]} are both the first frame; leave one of them out"
        raise refusal("conflicting_parameters", message, firsts[1])
    first = uploaded({name: found for name, found in uploads.items() if name != LAST}, ())
    last = uploaded({name: found for name, found in uploads.items() if name == LAST}, ())
    first += [Source(wanted.names["urls"], url=url) for url in wanted.urls]
    last += [Source(LAST, url=url) for url in wanted.reels.last_urls]
    if last and not first:
        raise _lacking(first)
    return [*first, *last]


def _named(uploads: Mapping[str, Sequence[Upload]], names: Sequence[str], urls: Sequence[str]) -> list[Source]:
    """What came under these names, then what came as an address."""
    found = uploaded({name: parts for name, parts in uploads.items() if name in names}, ())
    return [*found, *(Source(names[0], url=url) for url in urls)]


def _lacking(sources: Sequence[Source]) -> ApiError:
    name, which = (LAST, "last frame") if sources else ("input_reference", "first frame")
    return refusal("missing_parameter", f"{name} is missing; upload the {which} of the video", name)


def remembered(order: Order) -> dict[str, Any]:
    """What a job remembers of its request: who made it, the length as it was asked for, and what to tell."""
    seconds = order.wanted.seconds
    asked = {} if seconds is None else {"seconds": f"{seconds:.10g}"}
    return {"request": order.request.id, "warnings": list(order.wanted.warnings), **asked}
