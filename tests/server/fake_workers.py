"""Workers without torch or processes: every step takes `pace` seconds, every picture is one colour of its seed, every
text is `WORDS`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from omnimuse.core.errors import OmnimuseError
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Finished, Form, MadeFile, MadeText, Previewed, Remarks, Spelt, Stepped, Update
from omnimuse.media.formats import TEXT
from omnimuse.media.image import encode_image
from omnimuse.worker.pace import Shared

WORDS = ("a ", "red ", "circle")


@dataclass
class FakeWorkers:
    """`fail` maps a word of the prompt to the error that such a request ends with, after its first step. Those of
    `WORDS` that `unheard` numbers are in no piece of a text. `unfit` maps the file of an adapter to why no request can
    wear it.
    """

    spool: Path
    pace: float = 0.0
    fail: dict[str, OmnimuseError] = field(default_factory=dict)
    ready: bool = True
    broken: str = ""
    asleep: bool = False
    place: dict[str, str] = field(default_factory=lambda: {"dtype": "float32", "device": "cpu"})
    weights: dict[str, tuple[int, int]] = field(default_factory=dict)
    adapters: tuple[int, int] = (0, 0)
    company: list[Shared] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    started: list[Request] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    remarks: Remarks = Remarks()
    unheard: set[int] = field(default_factory=set)
    unfit: dict[str, OmnimuseError] = field(default_factory=dict)
    tried_on: list[tuple[Lora, ...]] = field(default_factory=list)

    async def try_on(self, loras: Sequence[Lora]) -> None:
        self.tried_on.append(tuple(loras))
        for lora in loras:
            if lora.source in self.unfit:
                raise self.unfit[lora.source]

    async def run(self, request: Request, form: Form) -> AsyncIterator[Update]:
        steps = request.params.num_inference_steps or 1
        self.started.append(request)
        self.forms.append(form)
        self.running.add(request.id)
        finished = False
        try:
            for step in range(1, steps + 1):
                await asyncio.sleep(self.pace)
                for output in range(request.outputs):
                    yield Stepped(request.id, output, "denoise", step, steps)
                    if request.previews and step % request.previews == 0:
                        yield Previewed(request.id, output, step, encode_image(self._draw(request, output), "JPEG", {}))
                for word, error in self.fail.items():
                    if word in request.prompt:
                        raise error
            if form.format == TEXT:
                for update in self._write(request):
                    await asyncio.sleep(self.pace)
                    yield update
                finished = True
                texts = (MadeText("".join(WORDS), len(WORDS), "stop"),) * request.outputs
                yield Finished(request.id, [], {"queue": 0.0}, 2**20, self.remarks, texts)
                return
            finished = True
            files = [self._file(request, output, form) for output in range(request.outputs)]
            yield Finished(request.id, files, {"queue": 0.0, "denoise": self.pace * steps}, 3 * 2**20, self.remarks)
        finally:
            self.running.discard(request.id)
            if not finished:
                self.cancelled.append(request.id)

    def _write(self, request: Request) -> Iterator[Spelt]:
        for number, word in enumerate(WORDS):
            if number not in self.unheard:
                for output in range(request.outputs):
                    yield Spelt(request.id, output, len("".join(WORDS[:number])), word)

    def _draw(self, request: Request, output: int) -> Image.Image:
        seed, params = request.seed(output), request.params
        colour = (seed % 256, seed // 256 % 256, 99)
        return Image.new("RGB", (params.width or 16, params.height or 16), colour)

    def _file(self, request: Request, output: int, form: Form) -> MadeFile:
        if form.format == "MP4":
            content = b"\0\0\0\x18ftypisom" + f"video of seed {request.seed(output)}".encode() * 100
        else:
            content = encode_image(self._draw(request, output), form.format, {})
        name = f"{request.id}-{output}.{form.format.lower()}"
        (self.spool / name).write_bytes(content)
        params = request.params
        return MadeFile(
            name,
            len(content),
            hashlib.sha256(content).hexdigest(),
            request.seed(output),
            params.width or 16,
            params.height or 16,
            params.num_frames or 1,
            params.fps,
        )
