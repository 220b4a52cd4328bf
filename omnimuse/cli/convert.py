"""Make a checkpoint folder from a single file of weights, as other programs share them.

The file holds weights only; --like names a checkpoint of the same kind that gives all the rest. Left out, it is the one
that the names and shapes in the file tell of. Weights that are packed, in 8 bits or as GGUF has them, stay packed where
the network is one of ours, and in text encoders of our families.

examples:
  omnimuse convert model.safetensors --like OWNER/NAME -o my-model
  omnimuse generate "a red circle" -m my-model
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse convert`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="weights in one *.safetensors or *.gguf file")
    parser.add_argument(
        "--like", metavar="MODEL", help="a folder or hub id of the same kind: configurations, tokenizers"
    )
    parser.add_argument("--component", metavar="NAME", help="which network it is, such as transformer_2, if two fit")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the checkpoint goes")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what came from where."""
    from omnimuse.compat.single_file import convert, like_of
    from omnimuse.loader.checkpoint import Checkpoint
    from omnimuse.loader.resolve import resolve
    from omnimuse.worker.find import our_components, published_id

    folder = resolve(args.like) if args.like else like_of(args.file)
    like = Checkpoint(folder.path)
    ours, published = our_components().get(like.arch, {}), published_id(folder, like)
    made = convert(args.file, like, args.output, args.component, ours=ours, published=published)
    print(f"{made.folder}: {', '.join(made.from_file)} from {args.file.name}, the rest from {folder.id}")
    for note in made.notes:
        print(f"  {note}")
    print(f"try: omnimuse generate 'a red circle' -m {made.folder}")
    return 0
