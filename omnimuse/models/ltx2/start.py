"""What LTX-2 starts from: noise for a video and its sound, and the first frame where one is given.

Source: the reference pipelines of diffusers (LTX2Pipeline, LTX2ImageToVideoPipeline). The frame is the picture as H.264
leaves it, in the size of the video by a bilinear filter; its latents are the means of what the autoencoder makes of it.

Letters: c f h w channels, frames, height, width of the video's latents; a l m channels, length, bands of the sound's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.diffusion.noise import draw
from omnimuse.media.video import recompressed
from omnimuse.models.ltx2.spec import LTX2Params, sound_size, video_size
from omnimuse.pipeline.encode import pixels_in
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.scaling import scaled
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeFirst(Stage):
    """Writes `first`: the means of the scaled latents [c, 1, h, w] of the first frame; None without one. Equal pictures
    are encoded once, for all outputs.
    """

    name: str = "encode first frame"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("first",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params, extra = state.request.params, cast(LTX2Params, state.request.extra)
        return (self, params.width, params.height, extra.image_crf, *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["first"] = self._encode(ctx, state.request) if state["images"] else None

    def _encode(self, ctx: Context, request: Request) -> Tensor:
        vae: Any = ctx.network("vae")
        crf = cast(LTX2Params, request.extra).image_crf
        picture = canvas(request.images[0], None)
        picture = recompressed(picture, crf) if crf else picture
        pixels = pixels_in(picture.resize(request.size, Image.Resampling.BILINEAR))
        means = vae.encode(pixels[None, :, None].to(ctx.device, vae.dtype)).latent_dist.mode()[0]  # [c, 1, h, w]
        return scaled(vae, vae.config, means.float())


@dataclass(frozen=True)
class InitBoth(Stage):
    """Writes `noise`: float32 Gaussian latents of the video, then of the sound, [c f h w + a l m].

    A first frame that is given stands in its place.
    """

    name: str = "init latents"
    reads: tuple[str, ...] = ("first",)
    writes: tuple[str, ...] = ("noise",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            sizes = (size(ctx.configs, state.request) for size in (video_size, sound_size))
            drawn = [draw((1, *size), state.generator, torch.float32, ctx.device) for size in sizes]
            if (first := state["first"]) is not None:
                drawn[0] = torch.cat([first[None], drawn[0][:, :, 1:]], dim=2)
            state["noise"] = torch.cat([each.flatten() for each in drawn])
