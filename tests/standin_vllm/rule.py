"""What the stand-in writes; tests know it, too."""

from __future__ import annotations

import os
from collections.abc import Sequence

CURSED, DEADLY = int(os.environ.get("CURSED", "-1")), int(os.environ.get("DEADLY", "-1"))
PACE = 0.01
MOST = int(os.environ.get("MOST", "100000"))


def next_of(ids: Sequence[int], words: int) -> int:
    """The token after these, of the first 200 of so many words."""
    return (31 * sum(ids) + 7 * len(ids) + 3) % min(200, words)
