"""Frames: what the front of a group of pools and each of them say to one another. No torch."""

from __future__ import annotations

from typing import Any

import msgspec

from omnimuse.core.loras import Lora


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


class Weigh(Frame, frozen=True):
    """Is there room for what stages of this pool take of a request? Answered at once, whatever is computed."""

    request: dict[str, Any]


class Way(msgspec.Struct, frozen=True, array_like=True):
    """How a request could be made: in tiles of how many pixels (0: as it usually is), and whether nothing is known of
    that; what one output `needs` beside the weights, if that is known. With a `message` where it never fits so, by
    which parameter, and how large is what does.
    """

    tile: int
    doubted: bool
    needs: int = 0
    message: str = ""
    param: str | None = None
    nearest: int = 0


class Weighed(Frame, frozen=True):
    """The answer: in which ways it could be made, what takes most first."""

    ways: list[Way]


class Try(Frame, frozen=True):
    """Find out what requests like this one take, from two small ones: what came of both from the pool before follows,
    then what goes on from here comes back, and Close. `vain`: they could not be drawn there, so nobody finds out.
    """

    request: dict[str, Any]
    vain: bool = False


class TryOn(Frame, frozen=True):
    """Can requests wear these adapters? Answered by Close, with an error if they cannot."""

    loras: list[Lora]


class Share(Frame, frozen=True):
    """Of no stream: so many bytes of the machine others of the group hold `beside` this process, and `among` so many
    what they leave is divided.
    """

    beside: int
    among: int


class Alive(Frame, frozen=True):
    """Of no stream: there is nothing to say."""

    stream: str = ""


AnyFrame = Open | Put | Credit | Close | Hold | Said | Weigh | Weighed | Try | TryOn | Share | Alive
