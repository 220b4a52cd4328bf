"""Which frames of a video are looked at by a model that watches it: as many a second as it was taught with.

Whoever reads a video for such a model keeps these alone, and so can read it to its end.
"""

from __future__ import annotations

import numpy as np

RATE = 2.0
"""Frames a second that are looked at of a video."""
FEWEST, MOST = 4, 768
"""Frames that are looked at of a video."""
READ = 240
"""Frames that are read of a file, at most: those of two minutes, and of a longer one fewer a second."""


def spread(count: int, rate: float, most: int = MOST) -> float:
    """The seconds of `count` frames, `rate` a second, where more than `most` of them should be looked at; else 0."""
    seconds = count / rate
    return seconds if round(seconds * RATE) > most else 0.0


def places(count: int, rate: float, most: int = MOST) -> list[int]:
    """The frames that are looked at of `count` of them, `rate` a second: `RATE` a second and an even number of them,
    `most` at most, spread over all; of few frames some are looked at more than once.
    """
    wanted = min(max(round(count / rate * RATE), FEWEST), most)
    return [round(place) for place in np.linspace(0, count - 1, wanted - wanted % 2).tolist()]
