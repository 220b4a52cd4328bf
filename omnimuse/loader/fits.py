"""What `omnimuse calibrate` has measured of a model, in a small file: beside the model, or in a folder of this user.

`worker/find.py` reads it when a model is found, `engine/calibrate.py` writes it. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnimuse.core.bounds import finite
from omnimuse.core.caches import Fits, TeaFit, cache_named
from omnimuse.core.errors import ConfigError, ModelError, reason
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.hub import Hub
from omnimuse.media.destination import write_whole

NAME = "cache.json"
"""In a model's folder."""
PLACE = "omnimuse-step-caches"
"""The folder beside the hub's cache."""


def place_of(checkpoint: Checkpoint, folder: Path | None = None) -> Path:
    """This user's file for a checkpoint; files that changed are another checkpoint."""
    folder = folder or Hub.standard().cache.parent / PLACE
    return folder / f"{checkpoint.fingerprint()}.json"


def measured_fits(checkpoint: Checkpoint, published: Fits, folder: Path | None = None) -> Fits:
    """What was measured of a checkpoint, the file in its own folder first; else what is `published` of its family.

    A file that cannot be used is the flaw of what is published: who asks for what it was to say is told, nobody else.
    """
    for path in (checkpoint.folder / NAME, place_of(checkpoint, folder)):
        if path.is_file():
            try:
                return read_fits(path, checkpoint.arch)
            except ModelError as problem:
                return replace(published, flaw=str(problem))
    return published


def read_fits(path: Path, arch: str = "") -> Fits:
    """The fits in a file, perhaps of models of the class `arch` alone; ModelError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no table")
        fits = Fits(
            TeaFit(_numbers(content, "coefficients"), _number(content.get("threshold"), "threshold")),
            _numbers(content, "ratios"),
            str(content.get("auto")),
            dbcache=_number(content.get("dbcache", Fits.dbcache), "dbcache"),  # earlier versions wrote neither of these
            magcache=_number(content.get("magcache", Fits.magcache), "magcache"),
            experts=_experts(content.get("experts", {})),
        )
        if cache_named(fits.auto).kind == "auto":
            raise ValueError("its choice is to be chosen by itself")
        if arch and (of := content.get("of", arch)) != arch:
            raise ValueError(f"it was measured of {of!r:.80}, and this is {arch}")
    except (OSError, ValueError, RecursionError, ConfigError) as problem:
        raise ModelError(
            f"{path} is not what `omnimuse calibrate` writes of this model ({reason(problem)}); measure the model "
            "again, or take the file away"
        ) from problem
    return fits


def write_fits(path: Path, fits: Fits, about: Mapping[str, Any], of: str = "") -> None:
    """Write `fits` of a model of class `of` as a whole file, or none; `about` tells people how they were measured."""
    experts = {name: {"coefficients": own.tea.coefficients, "ratios": own.ratios} for name, own in fits.experts}
    content = {
        "of": of,
        "coefficients": fits.tea.coefficients,
        "threshold": fits.tea.threshold,
        "ratios": fits.ratios,
        "dbcache": fits.dbcache,
        "magcache": fits.magcache,
        "auto": fits.auto,
        "experts": experts or "",
        "measured": about,
    }
    write_whole(
        path, (json.dumps({name: each for name, each in content.items() if each != ""}, indent=1) + "\n").encode()
    )


def _experts(given: object) -> tuple[tuple[str, Fits], ...]:
    if not isinstance(given, dict) or not all(isinstance(own, dict) for own in given.values()):
        raise ValueError("its experts are no table of tables")
    return tuple(
        (str(name), Fits(TeaFit(_numbers(own, "coefficients")), _numbers(own, "ratios"))) for name, own in given.items()
    )


def _numbers(content: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = content.get(name)
    if not isinstance(given, list):
        raise ValueError(f"its {name} are no list of numbers")
    return tuple(_number(value, name) for value in given)


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float) or not finite(value):
        raise ValueError(f"its {name} has {value!r:.80}, which is no finite number")
    return float(value)
