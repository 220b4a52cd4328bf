"""What people give with a prompt, as plain values: pictures, videos, sounds, which part of a picture is drawn anew.

`core/request.py` checks them with the rest of a request; files are read in `media/`. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omnimuse.core.errors import RequestError


@dataclass(frozen=True)
class Picture:
    """A picture that somebody gave, `width` x `height` pixels: a PNG file (RGB, 8 bits) that `media/picture.py` wrote.

    So no stage ever reads a file from elsewhere, and a request with pictures is plain values.
    """

    width: int
    height: int
    png: bytes

    @cached_property
    def digest(self) -> str:
        """What tells this picture from others, in hexadecimal: SHA-256 of its file."""
        from hashlib import sha256  # here and not above: what starts everything stays light

        return sha256(self.png).hexdigest()


@dataclass(frozen=True)
class Clip:
    """A video that somebody gave: `frames` of `width` x `height` pixels, each a PNG file as a `Picture` has it, `fps`
    of them a second (0: nobody says). Made by `media/clip.py`, so that a request is plain values. Of one that is
    watched, and too long to be looked at as often as others, its frames are `spread` over so many seconds (else 0).
    `track` is what is heard in it: what is made of it keeps that, or `lost` says why it is not there. Where it is only
    heard, a request has it among its sounds instead.
    """

    width: int
    height: int
    frames: tuple[bytes, ...]
    fps: float = 0.0
    spread: float = 0.0
    track: Recording | None = None
    lost: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Its frames as pictures."""
        return tuple(Picture(self.width, self.height, png) for png in self.frames)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its sender should know of how it is watched and heard; nothing where that is as usual."""
        seen = f"it was at {len(self.frames)} moments, spread over all of it; cut it"
        told = {
            f"a video of {self.spread:.0f} s is too long to be looked at as often as others: {seen}": self.spread,
            f"the sound of the video was left out: {self.lost}": self.lost,
        }
        return tuple(words for words, true in told.items() if true)

    @cached_property
    def digest(self) -> str:
        """What tells this video from others, in hexadecimal; not how fast it plays."""
        from hashlib import sha256

        return sha256("".join(picture.digest for picture in self.pictures).encode()).hexdigest()


@dataclass(frozen=True)
class Recording:
    """A sound that somebody gave: `rate` samples a second of 16 bits, those of `channels` in turn, low byte first.

    Made by `media/recording.py`, so that no stage reads a file from elsewhere, and a request is plain values.
    """

    rate: int
    channels: int
    pcm: bytes

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.pcm) / (2 * self.channels * self.rate)

    def first(self, seconds: float) -> Recording:
        """As much of it, or all of it where it is shorter."""
        return Recording(self.rate, self.channels, self.pcm[: round(seconds * self.rate) * 2 * self.channels])

    @cached_property
    def digest(self) -> str:
        """What tells this sound from others, in hexadecimal."""
        from hashlib import sha256

        return sha256(f"{self.rate} {self.channels} ".encode() + self.pcm).hexdigest()


SLACK = 0.02
"""By how much the proportions of a mask may be others than those of its video: sides are whole pixels."""

Pad = tuple[int, int, int, int]
"""Margins on the left, above, on the right and below, in pixels."""


@dataclass(frozen=True)
class Region:
    """Which part of a picture is drawn anew: where `mask`, of the picture's size, is white, and the margins `pad`, in
    the picture's pixels, by which it becomes larger. Without a mask, of the picture itself nothing.

    Over a video, the mask is a picture for all of its frames, or a clip with one for each.
    """

    mask: Picture | Clip | None = None
    pad: Pad = (0, 0, 0, 0)

    @property
    def padded(self) -> bool:
        """Whether the picture becomes larger."""
        return any(self.pad)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells this region from others."""
        return (None if self.mask is None else self.mask.digest, *self.pad)

    @property
    def told(self) -> dict[str, object]:
        """The region as settings have it: what tells the mask from others, and the margins."""
        mask = {} if self.mask is None else {"mask": self.mask.digest}
        return {**mask, **({"pad": list(self.pad)} if self.padded else {})}

    def size_around(self, picture: Picture) -> tuple[int, int]:
        """Width and height of `picture` with its margins."""
        left, above, right, below = self.pad
        return left + picture.width + right, above + picture.height + below


def region_of(mask: Any, pad: Any, images: Sequence[Picture]) -> Region | None:
    """The region that was asked for, if one was; RequestError for one that cannot be followed in the first picture."""
    if mask is None and pad is None:
        return None
    name = "pad" if mask is None else "mask"
    if not images:
        raise RequestError(f"{name} says what to draw anew of a picture, and there is none; give one", name)
    if mask is not None:
        _check_mask(mask, images[0])
    margins = (0, 0, 0, 0) if pad is None else _margins(pad, images[0])
    if mask is None and not any(margins):
        raise RequestError("pad=0,0,0,0 adds nothing to the picture; use margins above 0, or leave it out", "pad")
    return Region(mask, margins)


def region_of_video(mask: Any, pad: Any, videos: Sequence[Clip]) -> Region | None:
    """The region of a video that was asked for, if one was; RequestError for one that cannot be followed there."""
    if pad is not None:
        raise RequestError(
            "pad draws on beyond the edges of a picture, and of a video nothing does; leave it out", "pad"
        )
    if mask is None:
        return None
    if not videos:
        raise RequestError("mask says what to draw anew of a video, and there is none; give one (`videos`)", "mask")
    if not isinstance(mask, Picture | Clip):
        raise RequestError(f"mask must be a picture or a video, got {type(mask).__name__}", "mask")
    [video, *_] = videos
    ratios = mask.width / mask.height, video.width / video.height
    if abs(ratios[0] / ratios[1] - 1) > SLACK:  # either may have been scaled down on its own
        raise RequestError(
            f"the mask has {mask.width}x{mask.height} pixels and the video {video.width}x{video.height}; a mask lies "
            "over its video: give both the same proportions",
            "mask",
        )
    if isinstance(mask, Clip) and len(mask.frames) != len(video.frames):
        raise RequestError(
            f"the mask has {len(mask.frames)} frames and the video {len(video.frames)}; give one for each, or one "
            "picture for all",
            "mask",
        )
    return Region(mask)


def _check_mask(mask: Any, picture: Picture) -> None:
    if not isinstance(mask, Picture):
        raise RequestError(f"mask must be a picture, got {type(mask).__name__}", "mask")
    if (mask.width, mask.height) != (picture.width, picture.height):
        raise RequestError(
            f"the mask has {mask.width}x{mask.height} pixels and the picture {picture.width}x{picture.height}; a mask "
            "lies over its picture: give both the same size",
            "mask",
        )


def _margins(pad: Any, picture: Picture) -> Pad:
    """Four whole numbers, none of them more than the side along which it lies; RequestError for anything else."""
    how = "use four whole numbers: left, above, right, below"
    if not isinstance(pad, list | tuple) or len(pad) != 4:
        raise RequestError(f"pad={pad!r:.80} is not allowed; {how}", "pad")
    for value, most in zip(pad, (picture.width, picture.height) * 2, strict=True):
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"pad={pad!r:.80} is not allowed; {how}", "pad")
        if not 0 <= value <= most:
            raise RequestError(
                f"pad has the margin {value:.10g}; use 0 to {picture.width} on the left and on the right, 0 to "
                f"{picture.height} above and below: a margin is at most as wide as the picture",
                "pad",
            )
    left, above, right, below = pad
    return left, above, right, below
