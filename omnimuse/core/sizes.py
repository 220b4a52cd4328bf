"""Sizes of pictures that follow from others: whole numbers of pixels. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from omnimuse.core.errors import RequestError
from omnimuse.core.spec import Size, Sizing

STEEPEST = 16
"""How many times longer than the other a side of a picture may be: what is drawn ends at the largest side then."""


def of_area(width: int, height: int, area: int, multiple: int = 32) -> Size:
    """Width and height, multiples of `multiple`, of about `area` pixels in the proportions of `width` x `height`."""
    ratio = width / height
    wide = math.sqrt(area * ratio)
    return max(round(wide / multiple), 1) * multiple, max(round(wide / ratio / multiple), 1) * multiple


def like_last(area: int) -> Sizing:
    """What is drawn has about `area` pixels, in the proportions of the last picture; RequestError for a narrow one."""

    def sized(sizes: Sequence[Size]) -> Size:
        for number, (width, height) in enumerate(sizes, 1):
            if max(width, height) > STEEPEST * min(width, height):
                raise RequestError(
                    f"picture {number} has {width} x {height} pixels; the longer side may be {STEEPEST} times the "
                    "shorter: cut it to what matters",
                    "images",
                )
        return of_area(*sizes[-1], area)

    return sized
