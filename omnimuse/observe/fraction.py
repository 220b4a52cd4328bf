"""Which part of an output is made, from the steps that are told of it: the display's and the server's counting.

No torch; `observe/progress.py` and `server/jobs/live.py` use it.
"""

from __future__ import annotations

DRAWING, WRITING, TALKING = "denoise", "generate", "talk"
"""The loop that most of the time goes into."""
BEFORE, DRAWN = 0.3, 0.9
"""The part of the work that is done when a loop ends that comes before the drawing (a language model writes what is to
be drawn), and when that ends."""


class Fraction:
    """The part of one output that is done, `value`, 0 to 1; it never goes back, even when the steps begin again.

    A loop before the drawing is told from one behind it by what was seen so far.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._base: float | None = None

    def see(self, stage: str, step: int, steps: int | None) -> bool:
        """Take one step into account; whether it says anything: not of a stage of one step, before the drawing."""
        if steps is None:
            return False  # nobody knows how far it is
        part = step / steps
        if stage == DRAWING:
            self._base = self.value if self._base is None else self._base
            found = self._base + part * (DRAWN - self._base)
        elif self._base is not None:
            found = DRAWN + part * (1 - DRAWN)
        elif steps > 1:
            found = part * BEFORE
        else:
            return False  # it takes next to no time
        self.value = max(self.value, found)
        return True
