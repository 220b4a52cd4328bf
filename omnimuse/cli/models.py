"""What is supported, and what is on this machine.

examples:
  omnimuse models
  omnimuse models --json
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from omnimuse.cli.table import columns

if TYPE_CHECKING:
    from omnimuse.loader.resolve import Folder

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse models`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Print both lists."""
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
        }
        for spec in REGISTRY.specs()
    ]


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


def text(families: list[Row], folders: list[Row]) -> str:
    """Both lists for people."""
    parts = ["supported families, and published models of each:"]
    for row in families:
        parts.append(f"  {row['family']}: {row['summary']} ({', '.join(row['tasks'])})")
        parts += [f"    {model}" for model in row["models"]]
        parts.append(f"    any folder or hub id whose model_index.json names {row['pipeline']}")
    parts.append("")
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
