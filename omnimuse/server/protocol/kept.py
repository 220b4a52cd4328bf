"""What the bodies of all durable jobs have in common: how far one is, pages of them, and what is told while they run.

A cancelled job is a failed one whose error has the code `cancelled`: OpenAI's clients know no other status.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from omnimuse.server.protocol.within import Within

Status = Literal["queued", "in_progress", "completed", "failed"]
Body = TypeVar("Body", bound=BaseModel)


class Kept(Within):
    """A job as all are told; each kind names its `object`, and the `type` of its events. Dates in seconds since 1970;
    `progress` 0 to 100.
    """

    id: str
    object: str
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str


class Listed(BaseModel, Generic[Body]):
    """A page of jobs; the next one begins behind `last_id`."""

    object: Literal["list"] = "list"
    data: list[Body]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """A job that is gone."""

    id: str
    object: str = "deleted"
    deleted: Literal[True] = True


class Progressed(BaseModel):
    """How far a job is. The first event of a stream tells its state and has no step."""

    type: str = "progress"
    id: str
    status: Status
    progress: int
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None


class Looked(BaseModel):
    """A look at what is unfinished, after `step` denoising steps: a JPEG."""

    type: str = "preview"
    id: str
    step: int
    b64_json: str
    output_format: Literal["jpeg"] = "jpeg"


class Ended(BaseModel):
    """The last event: the job as it ended."""

    type: str
