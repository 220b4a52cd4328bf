"""What is asked for beside the parameters of a request: words that mean something when the model is known, and when
all of it is wanted. Shared by the commands that make a request.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omnimuse.cli.engine import NOTHING
from omnimuse.core.effort import EFFORT, LEVELS, UNSAID, steps_of
from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora, loras_of
from omnimuse.core.params import DiffusionParams

if TYPE_CHECKING:
    from omnimuse.core.request import Door


@dataclass(frozen=True)
class Terms:
    """`adjust`: sides and frames may become legal ones. `cfg_scale` goes where the model has its classifier-free
    guidance, and `quality` is a word for a number of steps. `deadline` is as `Ask` has it.
    """

    adjust: bool = False
    cfg_scale: float | None = None
    quality: str | None = None
    deadline: float | str | None = None

    def with_steps(self, params: DiffusionParams, door: Door) -> DiffusionParams:
        """`params` with the steps that `quality` stands for behind `door`; RequestError where they were chosen, too."""
        if self.quality is None or self.quality in UNSAID:
            return params
        level = LEVELS.get(self.quality, self.quality)
        if level not in EFFORT:
            raise RequestError(f"--quality {self.quality} is not known; use one of {', '.join(EFFORT)}", "quality")
        if params.num_inference_steps is not None:
            raise RequestError(f"--quality {self.quality} and --steps both choose the steps; leave one out", "quality")
        return replace(params, num_inference_steps=steps_of(level, door.defaults.num_inference_steps))

    def with_frames(self, params: DiffusionParams, door: Door) -> DiffusionParams:
        """`params` with the frames that make up the seconds of a video, where no number of them was chosen; those that
        are too many are left to be adjusted, where they may be.
        """
        if params.seconds is None or door.spec.medium != "video" or "num_frames" not in door.honoured:
            return params
        rate = params.fps or door.defaults.fps
        frames = params.num_frames or door.limits.frames_in(params.seconds, rate, too_many=self.adjust)
        return replace(params, num_frames=frames, seconds=None)


def add_adapters(parser: argparse._ActionsContainer, what: str) -> None:
    """Adapters to do `what` with."""
    parser.add_argument(
        "--lora",
        action="append",
        metavar="FILE[:SCALE]",
        help=f"an adapter to {what} with; or several; {NOTHING} is to wear none (docs/lora.md)",
    )


def read_adapters(words: Sequence[str] | None) -> tuple[Lora, ...] | None:
    """The adapters of `--lora`; RequestError for what names none."""
    if words is not None and NOTHING in words:
        if len(words) > 1:
            other = next(word for word in words if word != NOTHING)
            raise RequestError(f"--lora {NOTHING} is to wear none, and --lora {other} is one; leave one out", "lora")
        return None
    return loras_of(words)


def check_adapters(params: DiffusionParams) -> None:
    """RequestError where an adapter that is to be worn is not there, before anything is loaded."""
    from omnimuse.loader.adapter_file import find_file

    for lora in loras_of(params.loras) or ():
        find_file(lora.source)


def add_deadline(parser: argparse.ArgumentParser) -> None:
    """When results are wanted."""
    parser.add_argument(
        "--deadline",
        metavar="S|CLASS",
        help="of no use later, and given up: in so many seconds after the model is loaded, or by the name of a class",
    )


def read_deadline(words: str | None) -> float | str | None:
    """Seconds, or the name of a class, which whoever is asked knows."""
    try:
        return None if words is None else float(words)
    except ValueError:
        return words
