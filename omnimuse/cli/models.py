"""What is supported, and what is on this machine.

examples:
  omnimuse models
  omnimuse models omnimuse/shapes    # what this one takes
  omnimuse models --json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Any

from omnimuse.cli.table import columns

if TYPE_CHECKING:
    from omnimuse.core.spec import Spec
    from omnimuse.loader.resolve import Folder

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse models`."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="tell of this one: a bundled model, folder or hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print both lists, or all about one model."""
    if args.model is not None:
        row = about(args.model)
        print(json.dumps(row, indent=2) if args.json else text_about(row))
        return 0
    listing = {"supported": supported(), "here": here()}
    print(json.dumps(listing, indent=2) if args.json else text(listing["supported"], listing["here"]))
    return 0


def supported() -> list[Row]:
    """One row for each family in the registry; no torch."""
    from omnimuse.models import REGISTRY

    return [
        {
            "family": spec.family,
            "pipeline": spec.arch,
            "tasks": list(spec.tasks),
            "summary": spec.summary,
            "models": [known for variant in spec.variants for known in variant.ids],
            "known_by": known_by(spec),
        }
        for spec in REGISTRY.specs()
    ]


def known_by(spec: Spec) -> str:
    """What a folder of such a model has that no other has; pipelines are in the layout of diffusers."""
    from omnimuse.core.layouts import LAYOUTS
    from omnimuse.loader.checkpoint import CONFIGS, INDEX

    for files in LAYOUTS:
        if files.arch == spec.arch:
            return f"that holds {', '.join(files.marks)}"
    where = INDEX if spec.arch.endswith("Pipeline") else CONFIGS[0]
    return f"whose {where} names {' or '.join([spec.arch, *spec.also])}"


def here() -> list[Row]:
    """One row for each model on this disk; no torch."""
    from omnimuse.loader.resolve import list_local

    rows: list[Row] = []
    for folder in list_local():
        row = {"id": folder.id, "source": folder.source, "path": str(folder.path)}
        rows.append({**row, **_taught(folder)})
    return rows


def _taught(folder: Folder) -> Row:
    """What a model says it can draw, if it says so."""
    from omnimuse.core.errors import ModelError
    from omnimuse.loader.checkpoint import Checkpoint
    from omnimuse.loader.identity import taught

    try:
        told = taught(Checkpoint(folder.path))
    except ModelError:  # told when somebody wants to use it
        return {}
    return (
        {}
        if told is None
        else {"draws": {topic: list(words) for topic, words in told.words.items()}, "side": told.side}
    )


def about(model: str) -> Row:
    """What one model takes, gives and can do; no torch, no weights."""
    from omnimuse.core.config import Config, ModelConfig
    from omnimuse.worker.find import find

    found = find(Config(ModelConfig(model)))
    door, spec = found.door, found.door.spec
    defaults = {name: value for name, value in vars(door.defaults).items() if value is not None}
    return {
        "id": found.folder.id,
        "family": spec.family,
        "pipeline": spec.arch,
        "tasks": list(door.tasks),
        "summary": spec.summary,
        "pictures": [door.limits.min_images, door.limits.max_images],
        "videos": door.limits.max_videos,
        "sounds": door.limits.max_sounds,
        "defaults": defaults,
        "parameters": [_parameter(part) for part in fields(spec.extra)],
        "library": spec.library,
        "notes": dict(spec.notes),
    }


def _parameter(part: Field[Any]) -> Row:
    """One of the model's own parameters: name, type, default, and what it does where that is known."""
    told = {"type": str(part.type), "default": part.default, "about": "", **part.metadata}
    return {"name": part.name, **{name: told[name] for name in ("type", "default", "about")}}


def text_about(row: Row) -> str:
    """All about one model, for people."""
    least, most = row["pictures"]
    parts = [f"{row['id']}: {row['summary']} ({', '.join(row['tasks'])})"]
    if most:
        parts.append("pictures with a prompt: " + (f"{least} to {most}" if least != most else str(most)))
    if row["videos"]:
        parts.append(f"videos with a prompt: {row['videos']}")
    if row["sounds"]:
        parts.append(f"sounds with a prompt: {row['sounds']}")
    parts += ["", "defaults:", columns((name, str(value)) for name, value in row["defaults"].items())]
    if row["parameters"]:
        rows = [(part["name"], f"{part['type']} = {part['default']!r}", part["about"]) for part in row["parameters"]]
        parts += ["", "its own parameters (--set NAME=VALUE):", columns(rows)]
    if row["notes"]:
        parts += ["", "what to know:", columns(row["notes"].items())]
    return "\n".join([*parts, "", f"try: omnimuse explain {row['id']}"])


def text(families: list[Row], folders: list[Row]) -> str:
    """Both lists for people."""
    parts = ["supported families, and published models of each:"]
    for row in families:
        parts.append(f"  {row['family']}: {row['summary']} ({', '.join(row['tasks'])})")
        parts += [f"    {model}" for model in row["models"]]
        parts.append(f"    any folder or hub id {row['known_by']}")
    parts += ["", "any other pipeline of diffusers: it runs through diffusers (`omnimuse models FOLDER` says how)", ""]
    if folders:
        parts += ["on this machine:", columns((row["id"], row["source"], row["path"]) for row in folders)]
        parts += [line for row in folders for line in _draws(row)]
        parts += ["", f"try: omnimuse explain {folders[0]['id']}"]
    else:
        parts.append("on this machine: none; give `omnimuse generate -m` a hub id and it is downloaded")
    return "\n".join(parts)


def _draws(row: Row) -> list[str]:
    if not row.get("draws"):
        return []
    size = f", at {row['side']}x{row['side']}" if row.get("side") else ""
    return [
        f"  {row['id']} draws{size}:",
        *(f"    {topic}: {', '.join(words)}" for topic, words in row["draws"].items()),
    ]
