"""Compile a model's blocks now: engines that start later with --compile find the code on the disk.

examples:
  omnimuse warm omnimuse/shapes
  omnimuse warm omnimuse/shapes --dtype float32 --json
  omnimuse warm MODEL --lora style.safetensors      # also what adapters are worn by, whichever they are then
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from omnimuse.cli.engine import add_engine_options, read_config
from omnimuse.cli.terms import add_adapters, check_adapters, read_adapters
from omnimuse.core.config import Config
from omnimuse.core.loras import Loras
from omnimuse.core.params import DiffusionParams

if TYPE_CHECKING:
    from omnimuse.engine.warm import Warmed

Warm = Callable[[Config, Loras | None], "Warmed"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse warm`."""
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a hub id")
    add_engine_options(parser)
    add_adapters(parser, "compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace, ask: Warm | None = None) -> int:
    """Compile, and say what was new; `ask` is `omnimuse.api.warm` unless a test passes another."""
    loras = read_adapters(args.lora)
    check_adapters(DiffusionParams(loras=loras))
    warmed = (ask or warm)(read_config(args), loras)
    if args.json:
        print(json.dumps({**vars(warmed), "folder": str(warmed.folder)}, indent=2))
    else:
        print(f"compiled {warmed.made} and found {warmed.found} pieces of code in {warmed.seconds:.0f} s")
        print(f"kept in {warmed.folder}")
    return 0


def warm(config: Config, loras: Loras | None) -> Warmed:
    """The real thing; imports torch."""
    from omnimuse import api

    return api.warm(config.model.model, config=config, loras=loras)
