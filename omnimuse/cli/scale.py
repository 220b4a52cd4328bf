"""How many replicas there are: the options that `omnimuse serve` and `omnimuse simulate` share beside --replicas."""

from __future__ import annotations

import argparse

from omnimuse.deploy.scale import Scale

USUAL = Scale()


def add_scale_options(parser: argparse._ArgumentGroup) -> None:
    """The bounds of the number of replicas, and when it changes; `--replicas` is the lower bound."""
    parser.add_argument("--max-replicas", type=int, metavar="N", help="as many while requests wait (default: no more)")
    parser.add_argument(
        "--grow-after",
        type=float,
        default=USUAL.grow_after,
        metavar="S",
        help=f"one waits so long: a replica is added (default: {USUAL.grow_after:g})",
    )
    parser.add_argument(
        "--shrink-after",
        type=float,
        default=USUAL.shrink_after,
        metavar="S",
        help=f"some were idle for so long: one ends (default: {USUAL.shrink_after:g})",
    )


def read_scale(args: argparse.Namespace) -> Scale:
    """The numbers that the options say; ConfigError where they make no sense."""
    most = args.replicas if args.max_replicas is None else args.max_replicas
    return Scale(args.replicas, most, args.grow_after, args.shrink_after)
