"""Videos that came with a prompt, or that are made around pictures that did, as latents.

For diffusers VAEs that are causal in time: such an encoder, too, takes the cache of its convolutions as an argument
(`video.py` has the decoder's side), so a video goes in piece by piece, and memory holds one piece. Of others that
encode all at once, the first frame.

Letters: C latent channels, f h w latent frames, height, width; F H W those of the video; c t y x those of a piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.core.autoencoder import factors
from omnimuse.pipeline.scaling import scaled
from omnimuse.pipeline.stage import Context


def clip_latents(ctx: Context, frames: Iterable[Tensor], count: int = 1) -> Tensor:
    """The means of the scaled latents [C, f, h, w], float32, of the first `count` of `frames`, [3, H, W] in [-1, 1]."""
    network: Any = ctx.network("vae")
    means = encode_pieces(network, frames, count, factors(ctx.configs["vae"])[0])
    return scaled(network, network.config, means.float())


def first_latents(ctx: Context, pixels: Tensor, *, exact: bool = True) -> Tensor:
    """The same [C, 1, h, w] of one frame `pixels`, by a VAE that encodes all frames at once; scaled in float32 where it
    is `exact`, else in the VAE's dtype.
    """
    network: Any = ctx.network("vae")
    moments = network.encode(pixels[None, :, None].to(ctx.device, network.dtype), return_dict=False)[0]
    means = moments.mode()[0]
    return scaled(network, network.config, means.float() if exact else means).float()


def encode_pieces(network: Any, frames: Iterable[Tensor], count: int, span: int) -> Tensor:
    """The means [C, f, h, w] of a video's latents, as `network` makes them. One piece makes one latent frame: the first
    holds one frame, every other `span`; frames are asked for as they are needed.
    """
    coming, patch = iter(frames), network.config.patch_size or 1
    cache: list[Any] = [None] * sum(isinstance(module, nn.Conv3d) for module in network.encoder.modules())
    pieces = []
    for length in (1, *[span] * ((count - 1) // span)):
        clip = torch.stack(list(islice(coming, length)), dim=1).to(network.device, network.dtype)  # [3, t, H, W]
        pieces.append(network.encoder(packed(clip, patch)[None], feat_cache=cache, feat_idx=[0]))
    return network.quant_conv(torch.cat(pieces, dim=2))[0].chunk(2)[0]


def packed(clip: Tensor, patch: int) -> Tensor:
    """[3, t, y * patch, x * patch] -> [3 * patch * patch, t, y, x]; the order within is channel, column, row."""
    channels, t, height, width = clip.shape
    cells = clip.reshape(channels, t, height // patch, patch, width // patch, patch)
    return cells.permute(0, 5, 3, 1, 2, 4).reshape(-1, t, height // patch, width // patch)
