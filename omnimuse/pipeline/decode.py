"""Stock stage: finished latents become a picture, and a cheap way to look at unfinished ones.

Uses an image VAE whose `decode` maps [B, C, h, w] to pixels [B, 3, H, W] in [-1, 1]; `scaling.py` knows how its latents
are scaled. One output at a time: decoding gains little from company and its memory is what limits picture sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import Size
from omnimuse.pipeline.scaling import unscaled
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.tiles import Tiling

PREVIEW_CELLS = 16
"""A preview decodes latents of at most this many cells a side."""
PREVIEW_SIDE = 8 * PREVIEW_CELLS
"""Pixels of a side, at most, where it is decoded whole."""


@dataclass(frozen=True)
class DecodeImage(Stage):
    """From `latents` [C, h, w] to `image`: float32 [3, H, W] in [0, 1]; the latents themselves for output "latent".

    None where a request does without a picture.
    """

    tiles: ClassVar[bool] = True
    name: str = "decode"
    reads: tuple[str, ...] = ("latents",)
    writes: tuple[str, ...] = ("image",)
    uses: tuple[str, ...] = ("vae",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            latents = state["latents"]
            wants_latents = state.request.params.output_type == "latent"
            drawing = ctx.drawing(state.request)
            state["image"] = latents if wants_latents or latents is None else self.decode(drawing, latents)

    def tiled(self, ctx: Context, request: Request) -> Size | None:
        tiling = ctx.drawing(request).tiling
        return None if tiling is None or max(request.size) <= tiling.pixels else tiling.strides

    def decode(self, ctx: Context, latents: Tensor) -> Tensor:
        """What finished latents stand for."""
        return decode(ctx, latents, ctx.tiling)


def decode(ctx: Context, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
    """The picture [3, H, W], float32 in [0, 1], that scaled `latents` [C, h, w] stand for."""
    network = ctx.components["vae"]
    cells = unscaled(network, ctx.configs["vae"], latents)[None]  # [1, c, h, w]
    pixels = (network.decode(cells) if tiling is None else tiling.decode(network.decode, cells))[0]  # [3, H, W]
    return pixels.to(torch.float32).mul_(0.5).add_(0.5).clamp_(0, 1)  # in place: nobody else has them


def preview_by_decoding(ctx: Context, latents: Tensor) -> Tensor:
    """A small picture of unfinished latents, shrunk and then decoded: [C, h, w] -> [3, H', W'] in [0, 1]."""
    return decode(ctx, shrunk(latents, PREVIEW_CELLS))


def shrunk(picture: Tensor, most: int) -> Tensor:
    """[C, h, w] -> the same with no side longer than `most`, by the means of areas."""
    shrink = max(picture.shape[-2:]) / most
    if shrink <= 1:
        return picture
    size = [max(1, round(side / shrink)) for side in picture.shape[-2:]]
    return F.interpolate(picture[None], size=size, mode="area")[0]
