"""Videos that Wan starts from: what its autoencoder makes of the one that came with the prompt.

Source: the reference pipeline of diffusers (WanVideoToVideoPipeline), which takes the means, and draws the noise after.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; T frames per latent frame.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from omnimuse.core.request import Clip, Request
from omnimuse.models.wan.autoencoder import WanAutoencoder
from omnimuse.models.wan.spec import factors
from omnimuse.pipeline.encode import to_pixels
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeClip(Stage):
    """Writes `clip_latents`: the means of the scaled latents [C, f, h, w] of the first of `videos`, as many frames of
    it as are made, in the size that was asked for; None without a video. Encoded once for all outputs.
    """

    name: str = "encode video"
    reads: tuple[str, ...] = ("videos",)
    writes: tuple[str, ...] = ("clip_latents",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params = state.request.params
        size = (params.width, params.height, params.num_frames)
        return ("clip", *size, *(video.digest for video in state["videos"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        vae, (span, _) = ctx.network("vae"), factors(ctx.configs)
        assert isinstance(vae, WanAutoencoder)
        for state in states:
            videos = state["videos"]
            state["clip_latents"] = vae.scaled(vae.means(pieces(state.request, videos[0], span))) if videos else None


def pieces(request: Request, video: Clip, span: int) -> Iterator[Tensor]:
    """As many frames of `video` as are made, in their size: one frame [3, 1, H, W], then `span` each [3, T, H, W]."""
    length = request.params.num_frames
    assert length
    frames = islice(video.pictures, length)
    for count in (1, *[span] * ((length - 1) // span)):
        piece = [to_pixels(picture, *request.size) for picture in islice(frames, count)]
        yield torch.stack(piece, dim=1)
