"""A small server that speaks the HTTP contract to the page, and no more: it draws a disc whose colour is the seed's,
streams as the real one does, and remembers what it was asked.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import uvicorn
from PIL import Image, ImageDraw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from omnimuse.media.sound import Sound, encode_sound
from omnimuse.server.routes import playground
from omnimuse.server.service import Service

MADE = b"\0\0\0\x18ftypisom"
"""The video that this server makes."""
BIG_SEED = 2**62 + 1
"""A seed that a JavaScript number cannot hold."""

DEFAULTS = {"num_inference_steps": 10, "guidance_scale": 3.0, "height": 128, "width": 128}
PICTURES = {
    "tasks": ["text-to-image"],
    "size_multiple": 16,
    "max_side": 1024,
    "min_frames": 1,
    "max_frames": 1,
    "frame_step": 1,
    "max_prompt": 32000,
    "takes_images": False,
    "max_outputs": 10,
    "parameters": ["guidance_scale", "height", "negative_prompt", "num_inference_steps", "seed", "width"],
    "defaults": DEFAULTS,
    "fixed": {},
    "formats": ["png", "jpeg", "webp"],
    "extra": {"cfg_normalization": 0.0},
    "caches": ["none", "careful", "balanced", "fast", "teacache", "dbcache"],
}
EDITS = PICTURES | {
    "tasks": ["text-to-image", "image-to-image"],
    "takes_images": True,
    "max_images": 1,
    "parameters": [*cast(list[str], PICTURES["parameters"]), "strength"],
    "defaults": DEFAULTS | {"strength": 0.6},
}
VIDEOS = PICTURES | {
    "tasks": ["text-to-video"],
    "max_frames": 81,
    "frame_step": 4,
    "parameters": [*cast(list[str], PICTURES["parameters"]), "num_frames", "fps"],
    "defaults": DEFAULTS | {"num_frames": 9, "fps": 16.0},
    "extra": {},
}
FILMS = VIDEOS | {
    "tasks": ["text-to-video", "image-to-video"],
    "takes_images": True,
    "max_images": 2,
    "min_frames": 5,
}
REELS = VIDEOS | {
    "tasks": ["text-to-video", "video-to-video"],
    "max_videos": 1,
    "parameters": [*cast(list[str], VIDEOS["parameters"]), "strength"],
    "defaults": cast(dict[str, object], VIDEOS["defaults"]) | {"strength": 0.8},
}

SOUNDS = PICTURES | {
    "tasks": ["text-to-audio"],
    "size_multiple": 1,
    "max_side": 1,
    "max_outputs": 1,
    "max_seconds": 3.2,
    "parameters": ["guidance_scale", "negative_prompt", "num_inference_steps", "seconds", "seed"],
    "defaults": {"num_inference_steps": 10, "guidance_scale": 7.0, "seconds": 3.2},
    "formats": ["wav", "flac"],
    "extra": {"start": 0.0},
}
SPEECH = SOUNDS | {
    "parameters": ["seed"],
    "defaults": {},
    "choices": {"voice": ["vivian", "eric"], "language": ["auto", "english"]},
    "extra": {"voice": None, "language": None, "instructions": None, "temperature": None},
}
VOICES = SPEECH | {
    "max_sounds": 1,
    "choices": {"voice": [], "language": ["auto", "english"]},
    "extra": {"language": None, "ref_text": None, "temperature": None},
}

TALKS = PICTURES | {
    "tasks": ["text-to-text"],
    "medium": "text",
    "takes": ["text"],
    "parameters": ["seed"],
    "defaults": {},
    "choices": {"voice": ["chelsie"]},
    "extra": {},
    "sample_rate": 8000,
}


def disc(seed: int, width: int, height: int, done: float, form: str = "PNG") -> str:
    """A disc in the colour of `seed`, `done` (0..1) of its full size, as base64 of a file."""
    picture = Image.new("RGB", (width, height), (20, 22, 30))
    radius = min(width, height) * 0.38 * done
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    ImageDraw.Draw(picture).ellipse(box, fill=(90 + seed % 160, seed // 7 % 200, 180 - seed % 90))
    file = io.BytesIO()
    picture.save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def event(name: str, **data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"


@dataclass
class FakeApi:
    """What the page talks to. `pace` is seconds a step, `key` what a caller must know (empty: nothing)."""

    capabilities: dict[str, Any] = field(default_factory=lambda: PICTURES)
    pace: float = 0.0
    key: str = ""
    problem: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    watched: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    sources: list[tuple[str, tuple[int, int]]] = field(default_factory=list)
    recordings: list[tuple[str, bytes]] = field(default_factory=list)
    films: list[bytes] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    jobs: set[str] = field(default_factory=set)
    gone: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def app(self) -> Starlette:
        """The page's own routes, and the API's."""
        return Starlette(
            routes=[
                *playground.routes(cast(Service, None)),
                Route("/readyz", self.ready),
                Route("/v1/models", self.models),
                Route("/v1/images/generations", self.generate, methods=["POST"]),
                Route("/v1/images/edits", self.edit, methods=["POST"]),
                Route("/v1/chat/completions", self.talk, methods=["POST"]),
                Route("/v1/audio/generate", self.sound, methods=["POST"]),
                Route("/v1/videos", self.create_video, methods=["POST"]),
                Route("/v1/videos/sync", self.video_at_once, methods=["POST"]),
                Route("/v1/videos/{id}", self.video),
                Route("/v1/videos/{id}/events", self.video_events),
                Route("/v1/videos/{id}/content", self.video_content),
                Route("/v1/videos/{id}/cancel", self.cancel_video, methods=["POST"]),
            ]
        )

    async def ready(self, request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def models(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            error = {"message": "This server needs an API key.", "type": "authentication_error", "param": None}
            return JSONResponse({"error": error | {"code": "invalid_api_key"}}, 401)
        model = {"id": "omnimuse/shapes", "object": "model", "created": 0, "owned_by": "omnimuse"}
        return JSONResponse({"object": "list", "data": [model | {"capabilities": self.capabilities}]})

    async def generate(self, request: Request) -> Response:
        return self.answer(request, await request.json(), "image_generation")

    async def form(self, request: Request) -> dict[str, Any]:
        """The fields of a form; its pictures are noted, those in URLs, too."""
        form = await request.form()
        if (sound := form.get("audio")) is not None:
            assert not isinstance(sound, str)
            self.recordings.append((sound.filename or "", await sound.read()))
        if (video := form.get("video")) is not None:
            assert not isinstance(video, str)
            self.films.append(await video.read())
        for name in ("image", "image[]", "input_reference"):
            for source in form.getlist(name):
                assert not isinstance(source, str)
                self.note(source.filename or "", await source.read())
        if (mask := form.get("mask")) is not None:
            assert not isinstance(mask, str)
            with Image.open(io.BytesIO(await mask.read())) as image:
                self.masks.append(np.asarray(image.convert("RGBA"))[..., 3])  # [H, W], 0 where it is drawn anew
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        if url := fields.get("last_image[image_url]"):
            self.note("last", base64.b64decode(url.split(",")[1]))
        await form.close()
        return fields

    def note(self, name: str, content: bytes) -> None:
        with Image.open(io.BytesIO(content)) as picture:
            self.sources.append((name, picture.size))

    async def edit(self, request: Request) -> Response:
        fields = await self.form(request)
        width, height = self.sources[-1][1]
        like = {"size": f"{width}x{height}", "n": 1}  # without a size the answer has the picture's proportions
        return self.answer(request, like | fields, "image_edit")

    def answer(self, request: Request, fields: dict[str, Any], name: str) -> Response:
        self.asked.append(fields)
        self.keys.append(request.headers.get("authorization", ""))
        if self.problem is not None:
            return JSONResponse({"error": self.problem}, 400, headers={"x-request-id": "abc123"})
        if fields.get("stream"):
            return StreamingResponse(self.stream(fields, name), media_type="text/event-stream")
        return JSONResponse({"created": 0, "data": [{"b64_json": disc(self.seed(fields), 64, 64, 1.0), "seed": 1}]})

    def seed(self, fields: dict[str, Any]) -> int:
        return int(fields.get("seed", BIG_SEED))

    async def stream(self, fields: dict[str, Any], name: str) -> AsyncIterator[str]:
        steps, outputs = int(fields.get("num_inference_steps", 10)), int(fields.get("n", 1))
        width, height = (int(side) for side in fields["size"].split("x"))
        about = {"size": fields["size"], "quality": "auto", "background": "opaque", "created_at": 0}
        finished = False
        try:
            for output in range(outputs):
                yield event(f"{name}.progress", output=output, stage="encode_text", step=1, steps=1)
            for step in range(1, steps + 1):
                await asyncio.sleep(self.pace)
                for output in range(outputs):
                    yield event(f"{name}.progress", output=output, stage="denoise", step=step, steps=steps)
                    if step % (steps // 4 or 1) == 0 and step < steps:
                        b64 = disc(self.seed(fields) + output, width, height, step / steps, "JPEG")
                        more = {"b64_json": b64, "partial_image_index": 0, "output": output, "output_format": "jpeg"}
                        yield event(f"{name}.partial_image", step=step, steps=steps, **more, **about)
            for output in range(outputs):
                seed = self.seed(fields) + output
                b64 = disc(seed, width, height, 1.0)
                told = {"warnings": self.warnings} if self.warnings else {}
                yield event(
                    f"{name}.completed", b64_json=b64, seed=seed, output_format="png", timings={}, **about, **told
                )
            finished = True
            yield "data: [DONE]\n\n"
        finally:
            if not finished:
                self.gone.set()

    async def talk(self, request: Request) -> Response:
        """Ten words, each aloud for 0.15 s where a voice was asked for."""
        self.asked.append(asked := await request.json())
        piece = (0.5 * 32767 * np.sin(np.arange(1200) * 0.3)).astype("<i2")
        aloud = {"audio": {"data": base64.b64encode(piece.tobytes()).decode()}} if "audio" in asked else {}

        async def pieces() -> AsyncIterator[str]:
            for number in range(10):
                await asyncio.sleep(self.pace)
                yield f"data: {json.dumps({'choices': [{'delta': {'content': f'word {number} ', **aloud}}]})}\n\n"
            yield f"data: {json.dumps({'choices': [{'delta': {}, 'finish_reason': 'stop'}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def sound(self, request: Request) -> Response:
        """A tone as long as it was asked to be, in steps; of who speaks nobody knows how many there are."""
        is_form = request.headers["content-type"].startswith("multipart")
        asked = await self.form(request) if is_form else await request.json()
        asked["seconds"] = float(asked.get("seconds", 1.0))
        where = {"stage": "talk"} if "choices" in self.capabilities else {"stage": "denoise", "steps": 10}
        self.asked.append(asked)

        async def steps() -> AsyncIterator[str]:
            tone = 0.5 * np.sin(np.arange(int(8000 * asked["seconds"])) * 0.3)[None]
            pieces = np.array_split((tone[0] * 32767).astype("<i2"), 10)
            for step, piece in enumerate(pieces, 1):
                await asyncio.sleep(self.pace)
                yield event("audio.progress", status="in_progress", step=step, **where)
                heard = base64.b64encode(piece.tobytes()).decode()
                yield event("audio.delta", audio=heard, start=0, sample_rate=8000, channels=1)
            file = encode_sound(Sound(tone.astype(np.float32), 8000), "WAV", {})
            whole = {"audio": base64.b64encode(file).decode(), "format": "wav", "seconds": asked["seconds"]}
            yield event("audio.done", **whole, sample_rate=8000, seed=BIG_SEED, timings={})
            yield "data: [DONE]\n\n"

        if asked.get("stream_format") != "sse":
            return Response(b"RIFF", media_type="audio/wav")
        return StreamingResponse(steps(), media_type="text/event-stream")

    async def create_video(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        is_form = request.headers["content-type"].startswith("multipart")
        asked = await (self.form(request) if is_form else request.json())
        if not key or key not in self.jobs:  # who asks again is told of the same one
            self.asked.append({"size": "96x48"} | asked)  # without a size the video has the picture's proportions
            self.watched = 0
        self.jobs.add(key)
        return JSONResponse({"id": "video_1", "status": "queued", "size": self.asked[-1]["size"], "seed": BIG_SEED})

    async def video_at_once(self, request: Request) -> Response:
        await self.create_video(request)
        return await self.video_content(request)

    async def video(self, request: Request) -> Response:
        if not self.asked:
            return JSONResponse({"error": {"message": "there is no such video", "code": "video_not_found"}}, 404)
        asked = self.asked[-1]
        told = {name: asked[name] for name in ("model", "prompt", "size")}
        status = "completed" if self.watched == 10 or not self.pace else "in_progress"
        state = {"status": status, "created_at": 100, "completed_at": 142}
        frames = {"num_frames": asked.get("num_frames", 9), "fps": 16.0, "seed": BIG_SEED}
        return JSONResponse({"id": "video_1", **told, **state, **frames}, headers={"openai-poll-after-ms": "50"})

    async def video_events(self, request: Request) -> Response:
        async def steps() -> AsyncIterator[str]:
            for step in range(self.watched + 1, 11):
                await asyncio.sleep(self.pace)
                self.watched = step
                yield event("video.progress", output=0, stage="denoise", step=step, steps=10)
                yield event("video.preview", b64_json=disc(7, 128, 128, step / 10, "JPEG"))

        return StreamingResponse(steps(), media_type="text/event-stream")

    async def video_content(self, request: Request) -> Response:
        return Response(MADE, media_type="video/mp4")

    async def cancel_video(self, request: Request) -> Response:
        self.cancelled.set()
        return JSONResponse({"id": "video_1", "status": "failed"})


@dataclass
class Running:
    """A fake API that listens, and a browser page that looks at it."""

    api: FakeApi
    url: str


@contextmanager
def listening() -> Iterator[Running]:
    """A fake API behind a port of its own."""
    api = FakeApi()
    server = uvicorn.Server(uvicorn.Config(api.app(), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield Running(api, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    server.should_exit = True
    thread.join(10)
