"""What comes back: results and the events on the way to them.

Made by the worker's runner and the engine, read by the Python API, the command line and the server. Tensors travel
through here as opaque values; this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.errors import OmnimuseError
from omnimuse.core.params import DiffusionParams


@dataclass(frozen=True)
class Progress:
    """One step of one output is done: `step` of `steps` within `stage` (1-based)."""

    request_id: str
    output: int
    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """A cheap look at an unfinished output: `image` is a uint8 array [H, W, 3]."""

    request_id: str
    output: int
    step: int
    image: Any


@dataclass(frozen=True)
class Done:
    """The request is finished: all its outputs, in order."""

    request_id: str
    result: Result


@dataclass(frozen=True)
class Failed:
    """The request ended without a result."""

    request_id: str
    error: OmnimuseError


Event = Progress | Preview | Done | Failed


@dataclass(frozen=True)
class Result:
    """What one prompt gave.

    `images` (Pillow), `videos` (`media.video.Video`: frames and a rate) and `audios` hold what fits the model (empty
    otherwise); `output` is the tensor for output types `"pt"` (float in [0, 1]: pictures [n, 3, H, W], videos
    [n, F, 3, H, W]) and `"latent"`, leading dimension = outputs. `timings` are seconds per stage, summed over the
    ticks this request took part in. `error` is set, and everything else empty, when this prompt failed.
    """

    request_id: str
    prompt: str
    params: DiffusionParams
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    audios: list[Any] = field(default_factory=list)
    output: Any = None
    seeds: list[int] = field(default_factory=list)
    timings: Mapping[str, float] = field(default_factory=dict)
    error: OmnimuseError | None = None
