"""From finished or unfinished work to the bodies of answers: pictures, events of a stream, usage.

Routes give it what the workers made; it adds what the client is told beside the pictures. No I/O.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from omnimuse.core.request import Door, Request
from omnimuse.deploy.wire import MadeFile, Previewed, Stepped
from omnimuse.server.http.enclosed import Enclosed, Parcel
from omnimuse.server.http.sse import Event
from omnimuse.server.protocol import images as protocol
from omnimuse.server.translate.aliases import Wanted
from omnimuse.server.translate.asks import preview_steps

_SUFFIXES: dict[str, protocol.Format] = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}


@dataclass(frozen=True)
class Look:
    """What an answer repeats of its request; plain values, so that a job can keep them. `format` is a wire word.

    `work` is what the names of a stream's events begin with.
    """

    format: protocol.Format
    level: Literal["auto", "low", "medium", "high", "xhigh", "max"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    transport: str = "b64_json"
    safety_identifier: str | None = None
    work: protocol.Work = "image_generation"

    @staticmethod
    def of(wanted: Wanted, work: protocol.Work = "image_generation") -> Look:
        """What the answer to `wanted` repeats."""
        output = wanted.output
        return Look(
            format=_SUFFIXES[output.format],
            level=cast(Any, output.level),
            background=cast(Any, output.background),
            transport=output.transport,
            safety_identifier=wanted.safety_identifier,
            work=work,
        )

    @property
    def spent(self) -> protocol.Level:
        """The quality that was spent: the model's own number of steps is "medium"."""
        return "medium" if self.level == "auto" else self.level


@dataclass(frozen=True)
class Made:
    """What was drawn: files in order, seconds by stage, bytes its worker held then (0: not known)."""

    files: Sequence[MadeFile]
    timings: dict[str, float]
    memory: int = 0

    @property
    def seeds(self) -> str:
        """The seeds in order, for a header."""
        return ",".join(str(file.seed) for file in self.files)

    @property
    def seconds(self) -> dict[str, float]:
        """`timings` under names with their unit."""
        return {f"{stage.replace(' ', '_')}_s": round(seconds, 6) for stage, seconds in self.timings.items()}


def image_tokens(door: Door, files: Sequence[MadeFile]) -> int:
    """How many patches of the pictures the network sees: the unit in which usage is reported."""
    patch = door.limits.size_multiple
    return sum((file.width // patch) * (file.height // patch) for file in files)


def usage(tokens: int) -> protocol.Usage:
    """The usage of pictures of so many patches."""
    details = protocol.TokenDetails(image_tokens=tokens)
    return protocol.Usage(output_tokens=tokens, output_tokens_details=details, total_tokens=tokens)


def response(door: Door, look: Look, made: Made, places: Sequence[dict[str, str]], created: float) -> dict[str, Any]:
    """The ImagesResponse of finished work. `places` has `b64_json` or `url` of each picture."""
    first = made.files[0]
    answer = protocol.ImagesResponse(
        created=int(created),
        data=[
            protocol.Image.model_validate({**place, "seed": file.seed})
            for place, file in zip(places, made.files, strict=True)
        ],
        output_format=look.format,
        quality=look.spent,
        size=f"{first.width}x{first.height}",
        safety_identifier=look.safety_identifier,
        usage=usage(image_tokens(door, made.files)),
        timings=made.seconds,
        memory_bytes=made.memory or None,
    )
    return protocol.dump(answer)


class Events:
    """The events of one streamed request; remembers which previews were shown, so that a retry repeats none."""

    def __init__(self, request: Request, look: Look, previews: int, progress: bool) -> None:
        self._look, self._progress = look, progress
        size = (request.params.width, request.params.height)
        self._size = "auto" if None in size else f"{size[0]}x{size[1]}"
        self._steps = request.steps
        self._shown = {step: index for index, step in enumerate(preview_steps(self._steps, previews))}
        self._seen: set[tuple[int, int]] = set()

    def see(self, update: Stepped | Previewed) -> Iterator[Event]:
        """The events that a step or a preview gives: one or none."""
        if isinstance(update, Stepped):
            if self._progress:
                yield _event(
                    protocol.ProgressEvent(
                        type=cast(Any, f"{self._look.work}.progress"),
                        output=update.output,
                        stage=update.stage,
                        step=update.step,
                        steps=update.steps,
                    )
                )
        elif update.step in self._shown and (update.output, update.step) not in self._seen:
            self._seen.add((update.output, update.step))
            yield _event(self._partial(update))

    def completed(self, door: Door, made: Made, pictures: Enclosed) -> Iterator[Event]:
        """One event for each finished picture."""
        for index, (file, word) in enumerate(zip(made.files, pictures.words, strict=True)):
            kind, value = _event(
                protocol.CompletedImageEvent(
                    type=cast(Any, f"{self._look.work}.completed"),
                    b64_json=word,
                    output=index,
                    seed=file.seed,
                    created_at=int(time.time()),
                    size=f"{file.width}x{file.height}",
                    quality=self._look.level,
                    background=self._look.background,
                    output_format=self._look.format,
                    usage=usage(image_tokens(door, [file])),
                    timings=made.seconds,
                    safety_identifier=self._look.safety_identifier,
                )
            )
            yield kind, Parcel(value, pictures)

    def _partial(self, update: Previewed) -> protocol.PartialImageEvent:
        return protocol.PartialImageEvent(
            type=cast(Any, f"{self._look.work}.partial_image"),
            b64_json=encoded(update.picture),
            partial_image_index=self._shown[update.step],
            output=update.output,
            step=update.step,
            steps=self._steps,
            created_at=int(time.time()),
            size=self._size,
            quality=self._look.level,
            background=self._look.background,
        )


def encoded(content: bytes) -> str:
    """`content` in base64."""
    return base64.b64encode(content).decode("ascii")


def keepsake(look: Look, nonce: str) -> dict[str, Any]:
    """What a job remembers of its request, as plain values; `nonce` tells who made it. Who asked is not kept."""
    return {"look": asdict(replace(look, safety_identifier=None)), "nonce": nonce}


def remembered(detail: dict[str, Any]) -> tuple[Look, str]:
    """The look and the nonce of `keepsake`."""
    return Look(**detail["look"]), str(detail["nonce"])


def _event(model: protocol.ProgressEvent | protocol.PartialImageEvent | protocol.CompletedImageEvent) -> Event:
    return model.type, protocol.dump(model)
