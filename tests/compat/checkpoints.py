"""Tiny checkpoints for pipelines of the contract: those of the families, under the class names of the plugin."""

from __future__ import annotations

import json
from pathlib import Path

PLUGIN = "tests.compat.pipelines"


def renamed(folder: Path, arch: str) -> Path:
    """The checkpoint in `folder` with `arch` as what it was saved from."""
    path = folder / "model_index.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "_class_name": arch}))
    return folder
