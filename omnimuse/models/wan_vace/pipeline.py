"""Wan VACE as a pipeline: what it is given becomes latents and a mask, and pictures become frames before the video's.

Source: the reference pipeline of diffusers (WanVACEPipeline). There the last of the pictures comes first; what is given
is as large as the video, where the reference keeps proportions and warns of what does not fit.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; R pictures; s pixels per
latent; T frames per latent frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.core.request import Clip, Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.models.wan.pipeline import DENOISE, READ
from omnimuse.models.wan.pipeline import latent_shape as video_shape
from omnimuse.models.wan.spec import factors, patch_size
from omnimuse.models.wan_vace.spec import SPEC, VaceParams
from omnimuse.models.wan_vace.transformer import VaceStatic, WanVaceTransformer
from omnimuse.pipeline.clips import clip_latents
from omnimuse.pipeline.derive import Derive, EncodeGiven
from omnimuse.pipeline.encode import to_pixels
from omnimuse.pipeline.latents import InitLatents, frames_of
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.video import DecodeVideo

ANEW = 0.5
"""Of white, from here on a pixel is drawn anew."""


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, R + f, h, w] of the noise of one video and of the pictures before it."""
    channels, frames, height, width = video_shape(configs, request)
    return channels, len(request.images) + frames, height, width


def tokens(configs: Configs, request: Request) -> int:
    """Patches of latents."""
    return prod(latent_shape(configs, request)[1:]) // prod(patch_size(configs))


def encode_control(ctx: Context, request: Request) -> Tensor:
    """What the network is given, float32 [2 C + s s, R + f, h, w]: for every frame the latents of what is kept, of what
    is not, and which pixels that is.
    """
    return torch.cat([shown(ctx, request), filmed(ctx, request)], dim=1)


def filmed(ctx: Context, request: Request) -> Tensor:
    """The part of it that stands for the frames of the video: [2 C + s s, f, h, w]."""
    count = frames_of(request)
    kept = clip_latents(ctx, (pixels * (1 - mask) for pixels, mask in given(request)), count)  # [C, f, h, w]
    anew = clip_latents(ctx, (pixels * mask for pixels, mask in given(request)), count)
    soft = torch.stack(list(masks(request)))[:, None]  # [F, 1, H, W]
    cells = F.pixel_unshuffle(soft, factors(ctx.configs)[1]).transpose(0, 1)  # [s s, F, h, w]
    cells = F.interpolate(cells[None], size=kept.shape[1:], mode="nearest-exact")[0]
    return torch.cat([kept, anew, cells.to(kept.device)])


def given(request: Request) -> Iterator[tuple[Tensor, Tensor]]:
    """Every frame of the video [3, H, W], grey without one, and 1 where it is drawn anew, [1, H, W]."""
    width, height = request.size
    grey = torch.zeros(3, height, width)
    pictures = request.videos[0].pictures[: frames_of(request)] if request.videos else (None,) * frames_of(request)
    for picture, mask in zip(pictures, masks(request), strict=True):
        yield grey if picture is None else to_pixels(picture, width, height), (mask > ANEW).float()[None]


def masks(request: Request) -> Iterator[Tensor]:
    """How much of every pixel of a frame is drawn anew, [H, W] in [0, 1]: all without a mask."""
    width, height = request.size
    mask = None if request.region is None else request.region.mask
    pictures = mask.pictures[: frames_of(request)] if isinstance(mask, Clip) else (mask,) * frames_of(request)
    made: dict[bytes, Tensor] = {}  # of one that holds for every frame, only one
    for picture in pictures:
        if picture is None:
            yield torch.ones(height, width)
        else:
            if picture.png not in made:
                made = {picture.png: ((to_pixels(picture, width, height)[0] + 1) / 2).clamp(0, 1)}
            yield made[picture.png]


def shown(ctx: Context, request: Request) -> Tensor:
    """The part that stands for the pictures, the last one first: [2 C + s s, R, h, w]."""
    side, (channels, _, rows, columns) = factors(ctx.configs)[1], video_shape(ctx.configs, request)
    none = torch.zeros(channels, 0, rows, columns, device=ctx.device)
    found = [clip_latents(ctx, [fitted(request, each, side)]) for each in reversed(request.images)]  # [C, 1, h, w]
    latents = torch.cat([none, *found], dim=1)
    return torch.cat([latents, latents.new_zeros(channels + side**2, *latents.shape[1:])])


def fitted(request: Request, picture: Picture, side: int) -> Tensor:
    """A picture in the middle of a white one of the video's size, as large as it can be there: [3, H, W]."""
    width, height = request.size
    wide, high = (max(length // side, 1) * side for length in (picture.width, picture.height))
    pixels = to_pixels(picture, wide, high)
    scale = min(height / pixels.shape[1], width / pixels.shape[2])
    high, wide = int(pixels.shape[1] * scale), int(pixels.shape[2] * scale)
    inner = F.interpolate(pixels[None], size=(high, wide), mode="bilinear", align_corners=False)[0]
    made = torch.ones(3, height, width)
    top, left = (height - high) // 2, (width - wide) // 2
    made[:, top : top + high, left : left + wide] = inner
    return made


def without_pictures(ctx: Context, state: State) -> Sequence[Tensor]:
    """Finished latents without the frames that are pictures which were shown."""
    return [state["latents"][:, len(state["images"]) :]]


def conditions(ctx: Context, state: State, network: str, branch: str) -> VaceStatic:
    """The prompt of a branch and what is given as that network embeds them, and positions: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, WanVaceTransformer) and isinstance(extra, VaceParams)
    static = transformer.prepare(state[f"{branch}_embeds"], *latent_shape(ctx.configs, state.request)[1:])
    scale = torch.tensor([extra.conditioning_scale], device=static.rope.device)
    return VaceStatic(static.text, static.rope, control=transformer.embed_control(state["control"]), scale=scale)


class WanVace(Pipeline):
    """Text, and perhaps a video, a mask over it and pictures to show, to video."""

    spec = SPEC
    stages = (
        *READ,
        EncodeGiven(
            "control", encode_control, "encode what is given", reads=("videos", "images", "region"), always=True
        ),
        InitLatents(latent_shape),
        replace(DENOISE, conditions=conditions, token_count=tokens, given=("control",), start=None),
        Derive(without_pictures, "drop pictures", ("latents", "images"), ("video_latents",)),
        DecodeVideo(latents="video_latents"),
    )
    results = MappingProxyType({"video": "video"})


PIPELINE = WanVace
