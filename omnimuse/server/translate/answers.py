"""From finished or unfinished work to the bodies of answers: pictures, events of a stream, usage.

Routes give it what the workers made; it adds what the client is told beside the pictures. No I/O.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from omnimuse.core.request import Door, Request
from omnimuse.deploy.wire import Finished, MadeFile, Previewed, Remarks, Stepped
from omnimuse.observe.labels import AROUND, word_of
from omnimuse.server.http.enclosed import Enclosed, Parcel
from omnimuse.server.http.sse import Event
from omnimuse.server.jobs.row import Job
from omnimuse.server.protocol import images as protocol
from omnimuse.server.translate.aliases import Wanted
from omnimuse.server.translate.asks import preview_steps

MAX_TOLD = 2000
"""Characters of the header that has the warnings; what is beyond is in the answer's body."""
_MIB = 2**20
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
    warnings: Sequence[str] = ()

    @staticmethod
    def of(wanted: Wanted, work: protocol.Work = "image_generation") -> Look:
        """What the answer to `wanted` repeats."""
        output = wanted.output
        return Look(
            format=_SUFFIXES[output.format],
            level=cast(Any, output.level),
            background=cast(Any, output.background),
            transport=output.transport,
            safety_identifier=wanted.delivery.safety_identifier,
            work=work,
            warnings=wanted.warnings,
        )

    @property
    def spent(self) -> protocol.Level:
        """The quality that was spent: the model's own number of steps is "medium"."""
        return "medium" if self.level == "auto" else self.level


@dataclass(frozen=True)
class Made:
    """What was drawn: files in order, seconds by stage, the most bytes its worker held (0: not known), and remarks."""

    files: Sequence[MadeFile]
    timings: dict[str, float]
    memory: int = 0
    remarks: Remarks = Remarks()

    @staticmethod
    def of(made: Finished | Job) -> Made:
        """What a worker reports, or a job keeps."""
        return Made(made.files, made.timings, made.memory, made.remarks)

    def headers(self, warnings: Sequence[str]) -> dict[str, str]:
        """The headers of an answer: the seeds, and what to know (with `warnings`) as a JSON list."""
        told = [*warnings, *self.remarks.warnings]
        while told and len(json.dumps(told)) > MAX_TOLD:
            told.pop()
        return {"x-seed": self.seeds} | ({"x-warnings": json.dumps(told)} if told else {})

    @property
    def shown(self) -> list[str] | None:
        """The sizes in which the model was shown pictures, as WIDTHxHEIGHT; None where it was shown none."""
        return [f"{width}x{height}" for width, height in self.remarks.shown] or None

    @property
    def within(self) -> dict[str, Any]:
        """What it took within its stages, as `protocol.within` has it; empty where nobody asked."""
        told = self.remarks
        found = {
            "block_timings": {name: round(seconds, 6) for name, seconds in told.blocks.items()},
            "block_bytes": told.block_bytes,
            "steps": {word_of(stage): [round(each, 5) for each in took] for stage, took in told.steps.items()},
            "bytes": {word_of(stage): list(held) for stage, held in told.held.items()},
        }
        return {name: value for name, value in found.items() if value}

    @property
    def memory_mb(self) -> float | None:
        """`memory` in MiB, as other servers report it."""
        return round(self.memory / _MIB, 1) if self.memory else None

    @property
    def needs_mb(self) -> float | None:
        """The MiB that one output needs beside the weights; None where nobody knows."""
        return round(self.remarks.needs / _MIB, 1) if self.remarks.needs else None

    @property
    def work_seconds(self) -> float:
        """The seconds in which it was drawn."""
        return round(sum(seconds for stage, seconds in self.timings.items() if stage not in AROUND), 6)

    @property
    def seeds(self) -> str:
        """The seeds in order, for a header."""
        return ",".join(str(file.seed) for file in self.files)

    @property
    def seconds(self) -> dict[str, float]:
        """`timings` under names with their unit."""
        return {f"{word_of(stage)}_s": round(seconds, 6) for stage, seconds in self.timings.items()}


def timed(made: Finished) -> dict[str, Any]:
    """What is told beside the usage to a request that wants to know what it took within, and to no other."""
    drawn = Made.of(made)
    return {"timings": drawn.seconds, **drawn.within} if drawn.within else {}


def image_tokens(door: Door, files: Sequence[MadeFile]) -> int:
    """How many patches of the pictures the network sees: the unit in which usage is reported."""
    patch = door.limits.size_multiple
    return sum((file.width // patch) * (file.height // patch) for file in files)


def usage(tokens: int, read: int) -> protocol.Usage:
    """The usage of pictures of so many patches, for which `read` tokens of text were read."""
    return protocol.Usage(
        input_tokens=read,
        input_tokens_details=protocol.TokenDetails(text_tokens=read),
        output_tokens=tokens,
        output_tokens_details=protocol.TokenDetails(image_tokens=tokens),
        total_tokens=tokens + read,
    )


def told(warnings: Sequence[str]) -> list[str] | None:
    """The warnings of an answer, once each; None where there are none."""
    return list(dict.fromkeys(warnings)) or None


def response(
    door: Door, look: Look, made: Made, places: Sequence[dict[str, str]], created: float, name: str
) -> dict[str, Any]:
    """The ImagesResponse of finished work called `name`. `places` has `b64_json` or `url` of each picture."""
    first = made.files[0]
    answer = protocol.ImagesResponse(
        id=name,
        created=int(created),
        data=[
            protocol.Image.model_validate({**place, "seed": file.seed})
            for place, file in zip(places, made.files, strict=True)
        ],
        output_format=look.format,
        quality=look.spent,
        size=f"{first.width}x{first.height}",
        safety_identifier=look.safety_identifier,
        usage=usage(image_tokens(door, made.files), made.remarks.prompt_tokens),
        timings=made.seconds,
        **made.within,
        inference_time_s=made.work_seconds,
        peak_memory_mb=made.memory_mb,
        needs_memory_mb=made.needs_mb,
        shown=made.shown,
        warnings=told([*look.warnings, *made.remarks.warnings]),
    )
    return protocol.dump(answer)


class Events:
    """The events of one streamed request; remembers which previews were shown, so that a retry repeats none."""

    def __init__(self, request: Request, look: Look, previews: int, progress: bool) -> None:
        self._look, self._progress = look, progress
        size = (request.params.width, request.params.height)
        self._size = "auto" if None in size else f"{size[0]}x{size[1]}"
        self._steps = request.evaluations
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
        """One event for each finished picture; the last tells what all of them took within their stages."""
        last = len(made.files) - 1
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
                    usage=usage(image_tokens(door, [file]), 0 if index else made.remarks.prompt_tokens),
                    timings=made.seconds,
                    **(made.within if index == last else {}),
                    safety_identifier=self._look.safety_identifier,
                    shown=made.shown,
                    warnings=told([*self._look.warnings, *made.remarks.warnings]),
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
