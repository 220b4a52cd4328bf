"""The bodies of the video endpoints, in OpenAI's shapes with our additions (seed, frames, timings, time left).

Routes build these from jobs; the OpenAPI document describes them. A cancelled video is a failed one whose error has the
code `cancelled`: OpenAI's clients know no other status.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from omnimuse.server.protocol.images import JobError
from omnimuse.server.protocol.requests import request_model

VideoRequest = request_model("VideoRequest", "video")
Status = Literal["queued", "in_progress", "completed", "failed"]


class VideoJob(BaseModel):
    """A video as OpenAI's clients know it. Dates in seconds since 1970; `progress` 0 to 100."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: JobError | None = None


class Video(VideoJob):
    """A video, with what makes it again and how it went. `seconds` is the length that was asked for, `duration_s` the
    one it has; times in seconds, by stage as `timings` and, by vLLM-Omni's name, `stage_durations`. `peak_memory_mb` is
    the most MiB that its worker held. `warnings` say what may not be as one thinks.
    """

    seed: int
    num_frames: int
    fps: float
    eta_seconds: float | None = None
    timings: dict[str, float] | None = None
    duration_s: float
    file_name: str | None = None
    stage_durations: dict[str, float] | None = None
    inference_time_s: float | None = None
    peak_memory_mb: float | None = None
    warnings: list[str] | None = None


class VideoList(BaseModel):
    """A page of videos; the next one begins behind `last_id`."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class VideoProgressEvent(BaseModel):
    """How far a video is. The first event of a stream tells its state and has no step."""

    type: Literal["video.progress"] = "video.progress"
    id: str
    status: Status
    progress: int
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None


class VideoPreviewEvent(BaseModel):
    """A look at a frame of an unfinished video, after `step` denoising steps; a JPEG."""

    type: Literal["video.preview"] = "video.preview"
    id: str
    step: int
    b64_json: str
    output_format: Literal["jpeg"] = "jpeg"


class VideoEndedEvent(BaseModel):
    """The last event: the video as it ended."""

    type: Literal["video.completed", "video.failed"]
    video: Video
