"""Videos that begin with a picture: what Wan is told of the frames that are given.

Source: the reference pipeline of diffusers (WanImageToVideoPipeline). A network with channels for it gets, beside the
noisy latents, those of a video that is grey but for the given frames, and a mask that says which these are. A network
that gives every token a time gets the first latent frame in its place, at time 0.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; T frames per latent frame.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import OPTIONS
from omnimuse.models.wan.autoencoder import WanAutoencoder
from omnimuse.models.wan.spec import factors
from omnimuse.pipeline.encode import to_pixels
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeKnown(Stage):
    """Writes `known`: what the network is told of the given frames, float32; None without a picture.

    [T + C, f, h, w], a mask and latents, or the latents [C, 1, h, w] of the first frame. Encoded once for all outputs.
    """

    name: str = "encode pictures"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("known",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params = state.request.params
        size = (params.width, params.height, params.num_frames)
        return ("known", *size, *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["known"] = encode(ctx, state.request) if state["images"] else None


@dataclass(frozen=True)
class PutBackFirst(Stage):
    """From `latents` to `video_latents`: with the first frame as it was given, where the network was shown it so."""

    name: str = "put back the first frame"
    reads: tuple[str, ...] = ("latents", "known")
    writes: tuple[str, ...] = ("video_latents",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            latents, known = state["latents"], state["known"]
            replaced = known is not None and ctx.configs[OPTIONS].get("expand_timesteps")
            state["video_latents"] = with_first(latents, known) if replaced else latents


def with_first(latents: Tensor, first: Tensor) -> Tensor:
    """`latents` [C, f, h, w] with `first` [C, 1, h, w] for their first frame."""
    return torch.cat([first, latents[:, 1:]], dim=1)


def encode(ctx: Context, request: Request) -> Tensor:
    """What the network is told of the pictures of `request`: the first frame of the video, and perhaps the last."""
    vae, params, (span, _) = ctx.network("vae"), request.params, factors(ctx.configs)
    assert isinstance(vae, WanAutoencoder)
    assert params.num_frames
    pictures = [to_pixels(picture, *request.size) for picture in request.images]  # [3, H, W] each
    if ctx.configs[OPTIONS].get("expand_timesteps"):
        return vae.scaled(vae.means([pictures[0][:, None]]))  # [C, 1, h, w]
    latents = vae.scaled(vae.means(clips(pictures, params.num_frames, span)))  # [C, f, h, w]
    mask = torch.zeros(span, *latents.shape[1:], device=latents.device)  # [T, f, h, w]
    mask[:, 0] = 1
    if len(pictures) > 1:
        mask[-1, -1] = 1
    return torch.cat([mask, latents])


def clips(pictures: Sequence[Tensor], frames: int, span: int) -> Iterator[Tensor]:
    """A video of `frames` frames, grey between one picture, or two, at its ends: one frame, then `span` each."""
    first, *last = pictures
    yield first[:, None]
    grey = torch.zeros(3, span, *first.shape[1:])  # [3, T, H, W]
    count = (frames - 1) // span
    for index in range(count):
        ends = index == count - 1 and last
        yield torch.cat([grey[:, 1:], last[0][:, None]], dim=1) if ends else grey
