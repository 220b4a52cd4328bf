"""Wan VACE as a pipeline: what it is given becomes latents and a mask, and pictures become frames before the video's.

Source: the reference pipeline of diffusers (WanVACEPipeline). There the last of the pictures comes first; what is given
is as large as the video, where the reference keeps proportions and warns of what does not fit.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; R pictures; s pixels per
latent; T frames per latent frame.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from math import prod
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.core.request import Clip, Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.models.wan.autoencoder import WanAutoencoder
from omnimuse.models.wan.pipeline import HIGH_NOISE, LOW_NOISE, clean, expert, inputs
from omnimuse.models.wan.pipeline import latent_shape as video_shape
from omnimuse.models.wan.spec import factors, patch_size
from omnimuse.models.wan.transformer import WanStatic
from omnimuse.models.wan_vace.spec import SPEC, VaceParams
from omnimuse.models.wan_vace.transformer import VaceStatic, WanVaceTransformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import to_pixels
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches
from omnimuse.pipeline.video import DecodeVideo, preview_middle_frame

ANEW = 0.5
"""Of white, from here on a pixel is drawn anew."""


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, R + f, h, w] of the noise of one video and of the pictures before it."""
    channels, frames, height, width = video_shape(configs, request)
    return channels, len(request.images) + frames, height, width


def tokens(configs: Configs, request: Request) -> int:
    """Patches of latents."""
    return prod(latent_shape(configs, request)[1:]) // prod(patch_size(configs))


@dataclass(frozen=True)
class EncodeGiven(Stage):
    """Writes `control`: what the network is given, float32 [2 C + s s, R + f, h, w]: for every frame the latents of
    what is kept, of what is not, and which pixels that is. Encoded once for all outputs.
    """

    name: str = "encode what is given"
    reads: tuple[str, ...] = ("videos", "images", "region")
    writes: tuple[str, ...] = ("control",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params, region = state.request.params, state["region"]
        size = (params.width, params.height, params.num_frames)
        given = (*(video.digest for video in state["videos"]), "pictures", *(each.digest for each in state["images"]))
        return ("control", *size, *given, None if region is None else region.key)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        vae, (span, side) = ctx.network("vae"), factors(ctx.configs)
        assert isinstance(vae, WanAutoencoder)
        for state in states:
            state["control"] = torch.cat(
                [shown(vae, state.request, side), filmed(vae, state.request, span, side)], dim=1
            )


@dataclass(frozen=True)
class DropPictures(Stage):
    """From `latents` to `video_latents`: without the frames that are pictures which were shown."""

    name: str = "drop pictures"
    reads: tuple[str, ...] = ("latents", "images")
    writes: tuple[str, ...] = ("video_latents",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["video_latents"] = state["latents"][:, len(state["images"]) :]


def filmed(vae: WanAutoencoder, request: Request, span: int, side: int) -> Tensor:
    """The part of `control` that stands for the frames of the video: [2 C + s s, f, h, w]."""
    frames = count(request)
    counts = [1, *[span] * ((frames - 1) // span)]
    kept = vae.scaled(vae.means(pixels * (1 - mask) for pixels, mask in given(request, counts)))  # [C, f, h, w]
    anew = vae.scaled(vae.means(pixels * mask for pixels, mask in given(request, counts)))
    soft = torch.stack(list(masks(request, frames)))  # [F, H, W]
    cells = (
        soft.unflatten(1, (-1, side)).unflatten(3, (-1, side)).permute(2, 4, 0, 1, 3).flatten(0, 1)
    )  # [s s, F, h, w]
    cells = F.interpolate(cells[None], size=kept.shape[1:], mode="nearest-exact")[0]
    return torch.cat([kept, anew, cells.to(kept.device)])


def given(request: Request, counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The video in pieces of so many frames: pixels [3, T, H, W], grey without a video, and 1 where they are drawn
    anew, [1, T, H, W].
    """
    width, height, frames = *request.size, count(request)
    pictures = request.videos[0].pictures if request.videos else (None,) * frames
    pairs = zip(pictures[:frames], masks(request, frames), strict=True)
    for number in counts:
        piece = [next(pairs) for _ in range(number)]
        grey = torch.zeros(3, height, width)
        pixels = [grey if picture is None else to_pixels(picture, width, height) for picture, _ in piece]
        anew = [(mask > ANEW).float() for _, mask in piece]
        yield torch.stack(pixels, dim=1), torch.stack(anew)[None]


def masks(request: Request, frames: int) -> Iterator[Tensor]:
    """How much of every pixel of a frame is drawn anew, [H, W] in [0, 1]: all without a mask."""
    width, height = request.size
    mask = None if request.region is None else request.region.mask
    pictures = mask.pictures[:frames] if isinstance(mask, Clip) else (mask,) * frames
    made: dict[bytes, Tensor] = {}  # of one that holds for every frame, only one
    for picture in pictures:
        if picture is None:
            yield torch.ones(height, width)
        else:
            if picture.png not in made:
                made = {picture.png: ((to_pixels(picture, width, height)[0] + 1) / 2).clamp(0, 1)}
            yield made[picture.png]


def shown(vae: WanAutoencoder, request: Request, side: int) -> Tensor:
    """The part of `control` that stands for the pictures, the last one first: [2 C + s s, R, h, w]."""
    found = [
        vae.scaled(vae.means([fitted(request, each, side)[:, None]])) for each in reversed(request.images)
    ]  # [C, 1, h, w]
    width, height = request.size
    rows, columns, channels = height // side, width // side, int(vae.config.z_dim)
    latents = torch.cat(found, dim=1) if found else torch.zeros(channels, 0, rows, columns, device=vae.device)
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


def count(request: Request) -> int:
    """Its frames."""
    assert request.params.num_frames
    return request.params.num_frames


def conditions(ctx: Context, state: State, network: str, branch: str) -> WanStatic:
    """The prompt of a branch and what is given as that network embeds them, and positions: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, WanVaceTransformer) and isinstance(extra, VaceParams)
    _, f, h, w = latent_shape(ctx.configs, state.request)
    static = transformer.prepare(state[f"{branch}_embeds"], f, h, w)
    scale = torch.tensor([extra.conditioning_scale], device=static.rope.device)
    known = {each.name: getattr(static, each.name) for each in fields(WanStatic)}
    return VaceStatic(**known, control=transformer.embed_control(state["control"]), scale=scale)


class WanVace(Pipeline):
    """Text, and perhaps a video, a mask over it and pictures to show, to video."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(template=clean, pad=True, zeroed=True)),
        EncodeGiven(),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=tokens,
            preview=preview_middle_frame,
            networks=(HIGH_NOISE, LOW_NOISE),
            expert=expert,
            spacing="scheduler",
            given=("control",),
        ),
        DropPictures(),
        DecodeVideo(latents="video_latents"),
    )
    results = MappingProxyType({"video": "video"})


PIPELINE = WanVace
