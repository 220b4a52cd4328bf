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


class Company(BaseModel):
    """What forwards of a network for so many outputs of about so many row tokens each took: the share of the time of as
    many apart. Below 0.95 they go together.
    """

    network: str
    tokens: int
    states: int
    share: float


class LoadReport(BaseModel):
    """Requests accepted and unfinished, the most there may be, and the seconds a new one would wait (null: unknown).
    `company` is what was measured of outputs that are drawn together.
    """

    requests: int
    expected_wait_seconds: float | None
    max_queue: int
    draining: bool
    company: list[Company] = []
