"""The nouns of durable work: a job, what it is to do, when things happened to it, and how it ended.

Plain frozen values. The job store reads and writes them, `server/jobs/book.py` moves them on, routes show them to
clients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from omnimuse.deploy.wire import Form, MadeFile, Remarks

Kind = Literal["video", "image", "audio"]
State = Literal["queued", "in_progress", "completed", "failed"]


class Work(msgspec.Struct, frozen=True):
    """What a job is to do: a request as `wire.pack` gives it, the form of its files, and what its route remembers;
    `names` is what its client called each of our parameters.
    """

    model: str
    request: dict[str, Any]
    form: Form
    detail: dict[str, Any]
    names: dict[str, str] = {}


class Trouble(msgspec.Struct, frozen=True):
    """Why a job failed, in the words clients are told."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True)
class Times:
    """Of a job, in seconds since 1970; None: not yet, or never."""

    created: float
    started: float | None = None
    finished: float | None = None
    expires: float | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Job:
    """One accepted job. `attempt` counts its starts; `progress` is 0 to 100; files and timings come with the end."""

    id: str
    tenant: str
    kind: Kind
    work: Work
    times: Times
    state: State = "queued"
    attempt: int = 0
    progress: int = 0
    files: tuple[MadeFile, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    remarks: Remarks = Remarks()
    error: Trouble | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("completed", "failed")


@dataclass(frozen=True)
class Idempotency:
    """A key that a client chose for a request, and a hash of the request's body."""

    key: str
    body_hash: str


@dataclass(frozen=True)
class Page:
    """Which part of a list is wanted: `limit` jobs behind the one with id `after`, newest first unless ascending."""

    after: str | None = None
    limit: int = 20
    ascending: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a completed job gave; the files are named as they are kept."""

    files: tuple[MadeFile, ...]
    timings: dict[str, float]
    memory: int = 0
    remarks: Remarks = Remarks()
