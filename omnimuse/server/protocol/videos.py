"""The bodies of the video endpoints, in OpenAI's shapes with our additions (seed, frames, timings, time left).

Routes build these from jobs; the OpenAPI document describes them.
"""

from __future__ import annotations

from typing import Literal

from omnimuse.server.protocol.images import JobError
from omnimuse.server.protocol.kept import Deleted, Ended, Kept, Listed, Looked, Progressed
from omnimuse.server.protocol.requests import request_model

VideoRequest = request_model("VideoRequest", "video")


class VideoJob(Kept):
    """A video as OpenAI's clients know it. Dates in seconds since 1970; `progress` 0 to 100."""

    object: Literal["video"] = "video"
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: JobError | None = None


class Video(VideoJob):
    """A video, with what makes it again and how it went. `seconds` is the length that was asked for, `duration_s` the
    one it has; times in seconds, by stage as `timings` and, as vLLM-Omni has it, `stage_durations`. `peak_memory_mb` is
    the most MiB that its worker kept of its device, `needs_memory_mb` those that it needs beside the weights, where
    that is known. `warnings` say what may not be as one thinks.
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
    needs_memory_mb: float | None = None
    warnings: list[str] | None = None


class VideoList(Listed[Video]):
    """A page of videos; the next one begins behind `last_id`."""


class VideoDeleted(Deleted):
    """A video that is gone."""

    object: Literal["video.deleted"] = "video.deleted"


class VideoProgressEvent(Progressed):
    """How far a video is. The first event of a stream tells its state and has no step."""

    type: Literal["video.progress"] = "video.progress"


class VideoPreviewEvent(Looked):
    """A look at a frame of an unfinished video, after `step` denoising steps; a JPEG."""

    type: Literal["video.preview"] = "video.preview"


class VideoEndedEvent(Ended):
    """The last event: the video as it ended."""

    type: Literal["video.completed", "video.failed"]
    video: Video
