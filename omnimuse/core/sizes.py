"""Sizes of pictures that follow from others: whole numbers of pixels. No torch."""

from __future__ import annotations

import math


def of_area(width: int, height: int, area: int, multiple: int = 32) -> tuple[int, int]:
    """Width and height, multiples of `multiple`, of about `area` pixels in the proportions of `width` x `height`."""
    ratio = width / height
    wide = math.sqrt(area * ratio)
    return max(round(wide / multiple), 1) * multiple, max(round(wide / ratio / multiple), 1) * multiple
