"""Pack a model's weights into fewer bits once, into a new folder: every start with it reads what is packed.

Pictures are to the bit those of the same --quantize at a start, which loads longer (docs/quantization.md).

examples:
  omnimuse quantize omnimuse/shapes -o shapes-int8 --quantize int8
  omnimuse quantize ./my-model -o ./small --quantize transformer=int4,text_encoder=int8 --quantize-skip blocks.0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import QUANT, Config, ModelConfig, QuantConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse quantize`."""
    parser.add_argument("model", metavar="MODEL", help="a bundled model, a folder or a hub id")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")
    schemes = f"{', '.join(QUANT)}; or by component, such as transformer=int8,text_encoder=int8"
    parser.add_argument("--quantize", required=True, metavar="SCHEME", help=schemes)
    parser.add_argument("--quantize-skip", default="", metavar="PATTERNS", help="layers that stay as they are")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Pack, and say what and how."""
    config = Config(ModelConfig(args.model, device="cpu"), quantize=QuantConfig.of(args.quantize, args.quantize_skip))
    from omnimuse.worker.pack import pack_checkpoint

    made = pack_checkpoint(config, args.output)
    share = made.after / max(made.before, 1)
    if args.json:
        told = {choice.name: {"scheme": choice.value, "why": choice.reason} for choice in made.choices}
        print(json.dumps({"folder": str(made.folder), "packed": told, "before": made.before, "after": made.after}))
        return 0
    for choice in made.choices:
        print(f"{choice.name}: {choice.value}, {choice.reason}")
    print(f"{made.folder}: {share:.0%} of {told_bytes(made.before)}")
    print(f"try: omnimuse generate 'a red circle' -m {made.folder}")
    return 0
