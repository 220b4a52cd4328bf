"""The bodies of the sound endpoints: the request in the words of vLLM-Omni and ours, jobs in the shape of videos.

Routes build these from jobs; the OpenAPI document describes them. A cancelled sound is a failed one whose error has the
code `cancelled`, as with videos.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.images import JobError
from omnimuse.server.protocol.requests import request_model

AudioRequest = request_model("AudioRequest", "audio")
Status = Literal["queued", "in_progress", "completed", "failed"]


class AudioJob(BaseModel):
    """A sound that is made as a job. Dates in seconds since 1970; `progress` 0 to 100."""

    id: str
    object: Literal["audio"] = "audio"
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    error: JobError | None = None


class Audio(AudioJob):
    """A sound, with what it is, what makes it again and how it went; `seconds` is how long it plays, as far as that is
    known.
    """

    seconds: float | None = None
    sample_rate: int | None = None
    format: str
    seed: int
    eta_seconds: float | None = None
    timings: dict[str, float] | None = None
    peak_memory_mb: float | None = None
    warnings: list[str] | None = None


class AudioList(BaseModel):
    """A page of sounds; the next one begins behind `last_id`."""

    object: Literal["list"] = "list"
    data: list[Audio]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AudioDeleted(BaseModel):
    """A sound that is gone."""

    id: str
    object: Literal["audio.deleted"] = "audio.deleted"
    deleted: Literal[True] = True


class AudioProgressEvent(BaseModel):
    """How far a sound is. Of a job, the first event tells its state and has no step."""

    type: Literal["audio.progress"] = "audio.progress"
    id: str | None = None
    status: Status
    progress: int | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None


class AudioPreviewEvent(BaseModel):
    """A look at an unfinished sound, after `step` denoising steps: a JPEG, time to the right."""

    type: Literal["audio.preview"] = "audio.preview"
    id: str
    step: int
    b64_json: str
    output_format: Literal["jpeg"] = "jpeg"


class AudioDeltaEvent(BaseModel):
    """A piece of the sound that is finished: `audio` is base64 of samples of 16 bits, low byte first, those of the
    channels in turn; the first of them is number `start` of the sound.
    """

    type: Literal["audio.delta"] = "audio.delta"
    audio: str
    start: int
    sample_rate: int
    channels: int
    format: Literal["pcm16"] = "pcm16"


class AudioDoneEvent(BaseModel):
    """The last event of a stream: the whole sound as a file, and what makes it again."""

    type: Literal["audio.done"] = "audio.done"
    audio: str
    format: str
    seconds: float
    sample_rate: int
    seed: int
    timings: dict[str, float]


class AudioEndedEvent(BaseModel):
    """The last event of a job: the sound as it ended."""

    type: Literal["audio.completed", "audio.failed"]
    audio: Audio
