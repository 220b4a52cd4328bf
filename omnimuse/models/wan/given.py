"""Frames that Wan is given: those that a video begins and ends with, and a video that it starts from.

Source: the reference pipelines of diffusers (WanImageToVideoPipeline, WanVideoToVideoPipeline). A network with channels
for it gets, beside the noisy latents, those of a video that is grey but for the given frames, and a mask that says
which these are. One that gives every token a time gets the first latent frame in its place, at time 0.

Letters: C latent channels, f h w latent frames, height, width; T frames per latent frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.models.wan.spec import factors, is_timed
from omnimuse.pipeline.clips import clip_latents
from omnimuse.pipeline.encode import to_pixels
from omnimuse.pipeline.latents import frames_of
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State


def encode_frames(ctx: Context, request: Request) -> Tensor:
    """What the network is told of the pictures, float32: a mask and latents [T + C, f, h, w], or those of the first
    frame [C, 1, h, w].
    """
    first, *last = (to_pixels(picture, *request.size) for picture in request.images)  # [3, H, W] each
    if is_timed(ctx.configs):
        return clip_latents(ctx, [first])
    grey = [torch.zeros_like(first)] * (frames_of(request) - 1 - len(last))
    latents = clip_latents(ctx, [first, *grey, *last], frames_of(request))  # [C, f, h, w]
    mask = torch.zeros(factors(ctx.configs)[0], *latents.shape[1:], device=latents.device)  # [T, f, h, w]
    mask[:, 0] = 1
    if last:
        mask[-1, -1] = 1
    return torch.cat([mask, latents])


def encode_video(ctx: Context, request: Request) -> Tensor:
    """The scaled latents [C, f, h, w] of the video, as many frames of it as are made, in their size."""
    frames = (to_pixels(picture, *request.size) for picture in request.videos[0].pictures)
    return clip_latents(ctx, frames, frames_of(request))


def put_back(ctx: Context, state: State) -> Sequence[Tensor]:
    """Finished latents with the first frame as it was given, where the network was shown it so."""
    latents, known = state["latents"], state["known"]
    return [with_first(latents, known) if known is not None and is_timed(ctx.configs) else latents]


def with_first(latents: Tensor, first: Tensor) -> Tensor:
    """`latents` [C, f, h, w] with `first` [C, 1, h, w] for their first frame."""
    return torch.cat([first, latents[:, 1:]], dim=1)
