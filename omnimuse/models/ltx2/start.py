"""What LTX-2 starts from: noise for a video and its sound, and the first frame where one is given.

Source: the reference pipelines of diffusers (LTX2Pipeline, LTX2ImageToVideoPipeline). The frame is the picture as H.264
leaves it, in the size of the video by a bilinear filter; its latents are the means of what the autoencoder makes of it.

Letters: c f h w channels, frames, height, width of the video's latents; a l m channels, length, bands of the sound's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.diffusion.noise import draw
from omnimuse.media.video import recompressed
from omnimuse.models.ltx2.spec import LTX2Params, sound_size, video_size
from omnimuse.pipeline.clips import first_latents
from omnimuse.pipeline.encode import pixels_in
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State


def encode_first(ctx: Context, request: Request) -> Tensor:
    """The means of the scaled latents [c, 1, h, w] of the first frame."""
    crf = cast(LTX2Params, request.extra).image_crf
    picture = canvas(request.images[0], None)
    picture = recompressed(picture, crf) if crf else picture
    return first_latents(ctx, pixels_in(picture.resize(request.size, Image.Resampling.BILINEAR)))


def start_noise(ctx: Context, state: State) -> Sequence[Tensor]:
    """Float32 Gaussian latents of the video, then of the sound, [c f h w + a l m]; a first frame that is given stands
    in its place.
    """
    sizes = (size(ctx.configs, state.request) for size in (video_size, sound_size))
    drawn = [draw((1, *size), state.generator, torch.float32, ctx.device) for size in sizes]
    if (first := state["first"]) is not None:
        drawn[0] = torch.cat([first[None], drawn[0][:, :, 1:]], dim=2)
    return [torch.cat([each.flatten() for each in drawn])]
