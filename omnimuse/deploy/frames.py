"""Frames: what the front of a group of pools and each of them say to one another. No torch."""

from __future__ import annotations

from typing import Any

import msgspec


class Frame(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Something about one stream: one try of one request."""

    stream: str


class Open(Frame, frozen=True):
    """A stream begins; its request."""

    request: dict[str, Any]


class Put(Frame, frozen=True):
    """Piece `number` of what a request takes along (`worker/packing.py`); after the `last` there is none."""

    number: int
    last: bool
    head: bytes


class Credit(Frame, frozen=True):
    """A piece was taken: there is room for one more."""


class Close(Frame, frozen=True):
    """The stream is over; with an error, if it has a `kind`, a class of `core.errors`."""

    kind: str = ""
    message: str = ""
    param: str | None = None
    retry_after: float | None = None


class Hold(Frame, frozen=True):
    """Pause, or go on."""

    held: bool


class Said(Frame, frozen=True):
    """An event on the way."""

    head: bytes


class Alive(Frame, frozen=True):
    """Of no stream: there is nothing to say."""

    stream: str = ""


AnyFrame = Open | Put | Credit | Close | Hold | Said | Alive
