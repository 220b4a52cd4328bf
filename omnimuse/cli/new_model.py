"""Begin a family: read a checkpoint, or a pipeline class of diffusers, and write what can be known of it.

Run it in a checkout of omnimuse. Components, configuration, defaults of the call and names of weights are read; what is
written is a family that imports and registers, a builder of tiny checkpoints, and requests to compare with diffusers.
docs/add-a-model.md says how to go on.

examples:
  omnimuse new-model aura_flow --from AuraFlowPipeline
  omnimuse new-model my_model --from ./my-checkpoint
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from omnimuse.core.errors import ConfigError

TABLE = Path("omnimuse/models/__init__.py")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse new-model`."""
    parser.add_argument("name", metavar="NAME", help="what the family is called, such as aura_flow")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="FOLDER_OR_CLASS", help="a checkpoint, or a class of diffusers"
    )
    parser.add_argument("--into", type=Path, default=Path("."), metavar="FOLDER", help="the checkout (default: here)")


def run(args: argparse.Namespace) -> int:
    """Write the family and its line in the table, and say what is next."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise ConfigError(f"{args.name!r} is no name of a family; use small letters, digits and _, such as aura_flow")
    table = args.into / TABLE
    if not table.exists() or not (args.into / "tests/checkpoints").is_dir():
        raise ConfigError(f"{args.into} is no checkout of omnimuse; go there, or name it with --into")
    from omnimuse.compat.draft.facts import read_facts_of
    from omnimuse.compat.draft.texts import files

    facts = read_facts_of(args.source)
    known = table.read_text(encoding="utf-8")
    if f'"{facts.arch}"' in known:
        raise ConfigError(f"{facts.arch} has a family already: see {TABLE}")
    texts = files(args.name, facts)
    if there := [path for path in texts if (args.into / path).exists()]:
        raise ConfigError(f"{there[0]} is there already; choose another name")
    for path, text in texts.items():
        (args.into / path).parent.mkdir(parents=True, exist_ok=True)
        (args.into / path).write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    line = f'    "{facts.arch}": "omnimuse.models.{args.name}",\n'
    table.write_text(known.replace("\n}\n", f"\n{line}}}\n", 1), encoding="utf-8")
    print(f"a line in {TABLE}")
    if facts.without:
        print(f"left out, for {facts.arch} does without: {', '.join(facts.without)}")
    print(f"next: pytest tests/parity/test_pipelines.py -k {facts.arch}, and docs/add-a-model.md")
    return 0
