"""Stock stages for networks that fill in pictures: they see, beside what they draw, what is kept and where that is.

Source: the reference pipeline of diffusers for FLUX.1 Fill. C latent channels, h w latent sides.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omnimuse.core.autoencoder import factor
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.pipeline.encode import drawn, encode, pixels_in, resized, scaled_by
from omnimuse.pipeline.latents import cells, channels_of
from omnimuse.pipeline.region import canvas, pixels_anew
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeKept(Stage):
    """Writes `kept_moments` [2C, h, w]: what the VAE makes of the picture, grey where it is drawn anew."""

    name: str = "encode what is kept"
    reads: tuple[str, ...] = ("images", "region")
    writes: tuple[str, ...] = ("kept_moments",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return (self, state.request.size, state["region"].key, state["images"][0].digest)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            picture, region, size = state["images"][0], state["region"], state.request.size
            kept = ~pixels_anew(picture, region, size)
            state["kept_moments"] = encode(ctx, pixels_in(resized(canvas(picture, region), size)) * kept)


@dataclass(frozen=True)
class DrawKept(Stage):
    """Writes `beside` [C + p * p, h, w]: scaled latents drawn from `kept_moments`, then for each of the p x p pixels of
    a latent whether it is drawn anew. By the state's own generator, after the noise is.
    """

    name: str = "draw what is kept"
    reads: tuple[str, ...] = ("kept_moments", "images", "region")
    writes: tuple[str, ...] = ("beside",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            latents = scaled_by(ctx, drawn(state["kept_moments"], state.generator))  # [C, h, w]
            anew = pixels_anew(state["images"][0], state["region"], state.request.size)
            blocks = F.pixel_unshuffle(anew[None].to(latents), factor(ctx.configs["vae"]))  # [p * p, h, w]
            state["beside"] = torch.cat([latents, blocks])


def kept_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, h, w] of the noise of one picture, as of what is kept: the network has more channels than are drawn."""
    return channels_of(configs), *cells(configs, request)
