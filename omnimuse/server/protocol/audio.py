"""The bodies of the sound endpoints: the request in the words of vLLM-Omni and ours, jobs in the shape of videos.

Routes build these from jobs; the OpenAPI document describes them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.images import JobError
from omnimuse.server.protocol.kept import Deleted, Ended, Kept, Listed, Looked, Progressed
from omnimuse.server.protocol.requests import request_model
from omnimuse.server.protocol.within import Within

AudioRequest = request_model("AudioRequest", "audio")


class AudioJob(Kept):
    """A sound that is made as a job. Dates in seconds since 1970; `progress` 0 to 100."""

    object: Literal["audio"] = "audio"
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
    needs_memory_mb: float | None = None
    warnings: list[str] | None = None


class AudioList(Listed[Audio]):
    """A page of sounds; the next one begins behind `last_id`."""


class AudioDeleted(Deleted):
    """A sound that is gone."""

    object: Literal["audio.deleted"] = "audio.deleted"


class AudioProgressEvent(Progressed):
    """How far a sound is. The first event of a stream tells its state and has no step."""

    type: Literal["audio.progress"] = "audio.progress"


class AudioStepEvent(BaseModel):
    """How far a sound is that is made at once, and so is no job."""

    type: Literal["audio.progress"] = "audio.progress"
    status: Literal["in_progress"] = "in_progress"
    stage: str
    step: int
    steps: int | None


class AudioPreviewEvent(Looked):
    """A look at an unfinished sound, after `step` denoising steps: a JPEG, time to the right."""

    type: Literal["audio.preview"] = "audio.preview"


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


class AudioDoneEvent(Within):
    """The last event of a stream: the whole sound as a file, and what makes it again."""

    type: Literal["audio.done"] = "audio.done"
    audio: str
    format: str
    seconds: float
    sample_rate: int
    seed: int
    timings: dict[str, float]


class AudioEndedEvent(Ended):
    """The last event of a job: the sound as it ended."""

    type: Literal["audio.completed", "audio.failed"]
    audio: Audio
