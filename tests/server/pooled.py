"""Models whose stages are spread over real processes, for tests of the server: the files that say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ALLROUND = (
    {"name": "read", "stages": ["look", "compose", "read"]},
    {"name": "write", "stages": ["write", "read thoughts"]},
    {"name": "draw", "stages": "*", "connector": "tcp"},
)
"""What draws and writes with one network: every pool has that, and what was read goes from one to the next."""
ALOUD = (
    {"name": "think", "tracks": [0]},
    {"name": "talk", "tracks": [1], "connector": "tcp"},
    {"name": "sound", "stages": "*", "connector": "local"},
)
"""What answers aloud."""


def placed(folder: Path, *pools: dict[str, Any]) -> tuple[str, ...]:
    """The options of a server whose model is in these pools; they are written to a file in `folder`."""
    if not pools:
        return ()
    file = folder / "pools.yaml"
    file.write_text(json.dumps({"pools": pools}))  # JSON is YAML
    return ("--deploy", str(file))
