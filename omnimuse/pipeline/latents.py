"""Stock stage: the initial noise of an output, drawn from its own generator.

Drawing on the CPU in float32 in the reference's shape makes a seed mean the same picture here and there, on every
device, alone or in company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from omnimuse.core.autoencoder import factor, factors
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.noise import draw
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


def cells(configs: Configs, request: Request) -> tuple[int, int]:
    """Rows and columns of the latents of one picture in the size that was asked for."""
    (width, height), pixels = request.size, factor(configs["vae"])
    return height // pixels, width // pixels


def clip_cells(configs: Configs, request: Request) -> tuple[int, int, int]:
    """Frames, rows and columns of the latents of one video as long and as large as was asked for."""
    (temporal, spatial), (width, height) = factors(configs["vae"]), request.size
    return (frames_of(request) - 1) // temporal + 1, height // spatial, width // spatial


def frames_of(request: Request) -> int:
    """How many frames a video is to have."""
    assert request.params.num_frames is not None
    return request.params.num_frames


def clip_tokens(configs: Configs, request: Request) -> int:
    """The latents of one video, for a network whose every token is one."""
    return prod(clip_cells(configs, request))


def channels_of(configs: Configs) -> int:
    """How many channels the autoencoder's latents have."""
    channels = configs["vae"]["latent_channels"]
    assert isinstance(channels, int)
    return channels


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, h, w] of the noise of one picture for a network that is given latents as they are."""
    channels = configs["transformer"]["in_channels"]
    assert isinstance(channels, int)
    return channels, *cells(configs, request)


def packed_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, h, w] of the noise of one picture for a network whose channels are patches of 2 x 2: it has four times C."""
    channels = configs["transformer"]["in_channels"]
    assert isinstance(channels, int)
    return channels // 4, *cells(configs, request)


def packed_tokens(configs: Configs, request: Request) -> int:
    """Patches of 2 x 2 latents of one picture."""
    rows, columns = cells(configs, request)
    return (rows // 2) * (columns // 2)


@dataclass(frozen=True)
class InitLatents(Stage):
    """Writes `noise`: float32 Gaussian latents of the shape that `shape(configs, request)` gives, without batch.

    `swapped`: that shape begins with frames, which become the second dimension once all is drawn.
    """

    shape: Callable[[Configs, Request], tuple[int, ...]]
    swapped: bool = False
    name: str = "init latents"
    writes: tuple[str, ...] = ("noise",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            shape = self.shape(ctx.configs, state.request)
            noise = draw((1, *shape), state.generator, torch.float32, ctx.device)[0]  # [C, *, h, w]
            state["noise"] = noise.transpose(0, 1).contiguous() if self.swapped else noise
