"""What would be chosen for a model, and why, without reading any weights; with --measure, what a request takes, too.

examples:
  omnimuse explain omnimuse/shapes
  omnimuse explain omnimuse/shapes --dtype float32 --json
  omnimuse explain omnimuse/shapes --deploy pools.yaml
  omnimuse explain omnimuse/shapes --measure 1024x1024
  omnimuse explain --measure omnimuse/shapes
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict

from omnimuse.cli.engine import add_engine_options, add_pool_options, read_config, with_pools
from omnimuse.cli.table import columns
from omnimuse.core.config import Choice, Config

Explain = Callable[[Config, str | None], Sequence[Choice]]
_SIZE = re.compile(r"none|small|default|\d{1,6}[xX]\d{1,6}([xX]\d{1,6})?", re.ASCII)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse explain`."""
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a hub id")
    add_engine_options(parser)
    add_pool_options(parser)
    parser.add_argument(
        "--measure",
        nargs="?",
        const="default",
        type=measured,
        metavar="WxH[xF]",
        help="load the model, and tell what a request of that size takes beside the weights, stage by stage: of a "
        "large one by two small ones, which are drawn (left out: its own size)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list on stdout")


def measured(word: str) -> str:
    """A size that --measure takes."""
    if not _SIZE.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!r} is no size; use small, default, or a size as WxH or WxHxFRAMES")
    return word


def run(args: argparse.Namespace, ask: Explain | None = None) -> int:
    """Print the choices; `ask` is `omnimuse.explain` unless a test passes another."""
    config = with_pools(args, read_config(args))
    choices = (ask or explain)(config, args.measure)
    print(json.dumps([asdict(c) for c in choices], indent=2) if args.json else text(choices))
    return 0


def explain(config: Config, measure: str | None) -> Sequence[Choice]:
    """The real explanation; imports torch."""
    from omnimuse import api

    return api.explain(config.model.model, config=config, measure=measure)


def text(choices: Sequence[Choice]) -> str:
    """The choices for people, by topic."""
    topics = list(dict.fromkeys(choice.topic for choice in choices))
    parts = []
    for topic in topics:
        rows = columns((c.name, c.value, c.reason) for c in choices if c.topic == topic)
        parts.append(f"{topic}\n{rows}")
    return "\n\n".join(parts)
