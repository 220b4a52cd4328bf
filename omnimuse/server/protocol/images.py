"""The bodies of the image endpoints, in OpenAI's shapes with our additions (seed, timings, memory, output).

Routes build these and send `model_dump`; the OpenAPI document describes them. Nothing here knows how pictures are made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

ImageRequest = request_model("ImageRequest", "image")
ImageEditRequest = request_model("ImageEditRequest", "edit")

Format = Literal["png", "jpeg", "webp"]
Level = Literal["low", "medium", "high", "xhigh", "max"]
Work = Literal["image_generation", "image_edit"]
"""What the names of a stream's events begin with."""


class TokenDetails(BaseModel):
    """Tokens by medium."""

    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Text tokens that were read of the prompts, and image tokens of the output, one for each patch that the network
    sees. A picture to start from is no patches more. Of a stream, the first picture has the text tokens.
    """

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class Image(BaseModel):
    """One picture: its bytes or where they are, and the seed that makes it again."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


class Effort(Within):
    """What pictures took: `timings` are seconds by stage, `inference_time_s` those spent drawing, `peak_memory_mb` the
    most MiB that a worker kept of its device, `needs_memory_mb` those that one output needs beside the weights, where
    that is known.
    """

    timings: dict[str, float]
    inference_time_s: float
    peak_memory_mb: float | None = None
    needs_memory_mb: float | None = None


class ImagesResponse(Effort):
    """The answer to a request for pictures. `shown` are the sizes in which the model was shown the pictures that came,
    beside what it drew. `warnings` say what may not be as one thinks.
    """

    id: str
    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: Format
    quality: Level
    size: str
    safety_identifier: str | None = None
    usage: Usage
    shown: list[str] | None = None
    warnings: list[str] | None = None


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None
    type: str


class ImageJob(BaseModel):
    """A request for pictures that is kept; `result` is there once it is completed. Times in seconds since 1970."""

    id: str
    object: Literal["image.generation"] = "image.generation"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: JobError | None = None
    inference_time_s: float | None = None
    stage_durations: dict[str, float] | None = None
    peak_memory_mb: float | None = None
    needs_memory_mb: float | None = None
    warnings: list[str] | None = None
    result: ImagesResponse | None = None


class ImageDeleted(BaseModel):
    """The answer to a DELETE."""

    id: str
    object: Literal["image.generation.deleted"] = "image.generation.deleted"
    deleted: Literal[True] = True


class ProgressEvent(BaseModel):
    """One step of one output is done (ours; sent when the request has `progress`)."""

    type: Literal["image_generation.progress", "image_edit.progress"] = "image_generation.progress"
    output: int
    stage: str
    step: int
    steps: int | None


class PartialImageEvent(BaseModel):
    """A look at an unfinished picture; the look is a JPEG, whatever format the picture will have."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int
    output: int
    step: int
    steps: int
    created_at: int
    size: str
    quality: Level | Literal["auto"]
    background: Literal["opaque", "auto"]
    output_format: Format = "jpeg"


class CompletedImageEvent(Within):
    """One finished picture."""

    type: Literal["image_generation.completed", "image_edit.completed"] = "image_generation.completed"
    b64_json: str
    output: int
    seed: int
    created_at: int
    size: str
    quality: Level | Literal["auto"]
    background: Literal["opaque", "auto"]
    output_format: Format
    usage: Usage
    timings: dict[str, float]
    safety_identifier: str | None = None
    shown: list[str] | None = None
    warnings: list[str] | None = None


def dump(model: BaseModel) -> dict[str, Any]:
    """`model` as plain values for JSON; what is absent stays away."""
    return model.model_dump(exclude_none=True)
