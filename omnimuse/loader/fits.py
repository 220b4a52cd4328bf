"""What `omnimuse calibrate` has measured of a model, in a small file: beside the model, or in a folder of this user.

`worker/find.py` reads it when a model is found, `engine/calibrate.py` writes it. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnimuse.core.caches import Fits, TeaFit, cache_named
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.hub import Hub

NAME = "cache.json"
"""In a model's folder."""
PLACE = "omnimuse-step-caches"
"""The folder beside the hub's cache."""


def place_of(checkpoint: Checkpoint, folder: Path | None = None) -> Path:
    """This user's file for a checkpoint; files that changed are another checkpoint."""
    folder = folder or Hub.standard().cache.parent / PLACE
    return folder / f"{checkpoint.fingerprint()}.json"


def measured_fits(checkpoint: Checkpoint, published: Fits, folder: Path | None = None) -> Fits:
    """What was measured of a checkpoint, the file in its own folder first; else what is `published` of its family."""
    for path in (checkpoint.folder / NAME, place_of(checkpoint, folder)):
        if path.is_file():
            return read_fits(path)
    return published


def read_fits(path: Path) -> Fits:
    """The fits in a file; ModelError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = Fits(
            TeaFit(_numbers(content["coefficients"]), float(content["threshold"])),
            _numbers(content["ratios"]),
            str(content["auto"]),
            dbcache=float(content.get("dbcache", Fits.dbcache)),  # earlier versions wrote neither of these two
            magcache=float(content.get("magcache", Fits.magcache)),
        )
        cache_named(fits.auto)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as problem:
        raise ModelError(
            f"{path} is not what `omnimuse calibrate` writes ({type(problem).__name__}: {problem}); measure the model "
            "again, or take the file away"
        ) from problem
    return fits


def write_fits(path: Path, fits: Fits, about: Mapping[str, Any]) -> None:
    """Write `fits` as a whole file, or none; `about` tells people how they were measured."""
    content = {
        "coefficients": fits.tea.coefficients,
        "threshold": fits.tea.threshold,
        "ratios": fits.ratios,
        "dbcache": fits.dbcache,
        "magcache": fits.magcache,
        "auto": fits.auto,
        "measured": about,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _numbers(given: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in given)
