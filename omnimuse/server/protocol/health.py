"""What the endpoints of health and load answer."""

from __future__ import annotations

from pydantic import BaseModel


class Status(BaseModel):
    """`status` is "alive", "ready" or "unready"; `reasons` say why it is not ready."""

    status: str
    reasons: list[str] = []


class Version(BaseModel):
    """The version of omnimuse."""

    version: str


class LoadReport(BaseModel):
    """Requests accepted and unfinished, the most there may be, and the seconds a new one would wait (null: unknown)."""

    requests: int
    expected_wait_seconds: float | None
    max_queue: int
    draining: bool
