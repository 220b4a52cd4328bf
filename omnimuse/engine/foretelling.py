"""What a request takes, foretold by two small ones of its kind: they are drawn alone, just before it would begin.

What the widest layer takes (`worker/room.py`) is a bound from below: of a small network's picture, the decoder takes a
hundred times as much. So where a request might not fit, by a guess that is far too high, it is drawn at two small sizes
and watched, and a straight line through both tells what its own size takes at the least (`docs/performance.md` has how
well).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from omnimuse.core.request import Request
from omnimuse.core.spec import Limits
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.video import TILE_ABOVE, DecodeClip
from omnimuse.worker.place import most_allocated

log = logging.getLogger(__name__)

SIDES = (256, 512)
"""Of what is drawn small, about; as legal sides go."""
GUESS = 8192
"""Bytes that a pixel takes, guessed high: published decoders of pictures take 4000 to 5000 in float32."""
RESULT = 16
"""Bytes that a pixel of each frame takes, guessed high: its numbers in float32, and a copy of some."""


class Line(NamedTuple):
    """What two numbers of pixels have taken, in bytes."""

    fewer: tuple[int, int]
    more: tuple[int, int]

    def at(self, pixels: int) -> int:
        """What so many `pixels`, which are more, take at the least."""
        (fewer, small), (more, large) = self.fewer, self.more
        return large + (pixels - more) * max(0, large - small) // (more - fewer)


NOTHING = Line((0, 0), (1, 0))


class Foretelling:
    """What requests take, by their kind. `draw` draws one while all others wait, and says whether it was drawn.

    Nothing is foretold where frames are decoded in tiles, which take what a tile takes, and of what is written before
    it is drawn, which would take long.
    """

    def __init__(self, limits: Limits, pipeline: Pipeline, draw: Callable[[Request], bool]) -> None:
        ctx = pipeline.ctx
        self._device, self._draw = ctx.device, draw
        never = any(
            isinstance(stage, DecodeClip) or (isinstance(stage, Loop) and stage.grows) for stage in pipeline.own
        )
        self._sides = [max(1, round(side / limits.size_multiple)) * limits.size_multiple for side in SIDES]
        chosen = vars(limits.fixed).get("width") is None and not {"width", "height"} & set(limits.refuses)
        free = chosen and ctx.tiling is None and not never
        self._sized = free and self._sides[0] < self._sides[1] <= limits.max_side
        self._steps = limits.fixed.num_inference_steps or limits.min_steps
        self._known: dict[Hashable, Line] = {}

    def doubts(self, request: Request, room: int | None) -> bool:
        """Whether `request` might not fit into `room`, and nothing is known of its kind."""
        pixels = _pixels(request)
        if room is None or not self._sized or _in_tiles(request) or _kind(request) in self._known:
            return False
        if pixels <= self._sides[1] ** 2:
            return False
        return pixels * (GUESS + RESULT * (request.params.num_frames or 1)) > room

    def learn(self, request: Request) -> None:
        """Draw small ones of its kind; where that cannot be, nothing is foretold of it."""
        self._known[_kind(request)] = NOTHING
        small, large = (self._smaller(request, side) for side in self._sides)
        if not self._draw(small):  # texts are read once; what libraries make with it does not count, either
            return
        found = [most_allocated(self._device, partial(self._draw, each)) for each in (small, large)]
        if found[0] is not None and found[1] is not None:
            self._known[_kind(request)] = Line((_pixels(small), found[0]), (_pixels(large), found[1]))
            told = found[0] / 2**30, *large.size, found[1] / 2**30
            log.info("what is drawn at %dx%d takes %.2f GiB, at %dx%d %.2f", *small.size, *told)

    def takes(self, request: Request, coming: int) -> int:
        """The bytes that `request` takes at the least beside the weights, `coming` ones among them; 0 if nothing is
        known of its kind.
        """
        line = self._known.get(_kind(request), NOTHING)
        return 0 if _in_tiles(request) else max(0, line.at(_pixels(request)) - coming)

    def _smaller(self, request: Request, side: int) -> Request:
        p = request.params
        steps = min(p.num_inference_steps or 1, -(-self._steps // (p.strength or 1.0)))
        small = replace(
            p, width=side, height=side, num_inference_steps=int(steps), num_outputs_per_prompt=1, cache=None
        )
        return replace(request, id=f"{request.id}-{side}", params=small, previews=0, chunks=False, blocks=False)


def _pixels(request: Request) -> int:
    p = request.params
    return (p.width or 0) * (p.height or 0)


def _in_tiles(request: Request) -> bool:
    return (request.params.num_frames or 1) > 1 and _pixels(request) > TILE_ABOVE


def _kind(request: Request) -> Hashable:
    """What of a request, besides its sides, says what it takes."""
    shown = len(request.images), len(request.videos), request.region is None
    return request.params.num_frames, request.branches, shown, repr(request.extra)
