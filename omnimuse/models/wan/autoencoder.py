"""The video autoencoder of Wan: diffusers' own, with lighter parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm, WanUpsample, patchify
from torch import Tensor, nn

from omnimuse.components.causal_video import lighten


class WanAutoencoder(AutoencoderKLWan):
    """diffusers' network, weights and cache; convolutions, norms and upsampling compute as ours do."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanAutoencoder:
        """The network that vae/config.json describes."""
        network = cast(WanAutoencoder, super().from_config(dict(config)))
        lighten(network, WanCausalConv3d, WanRMS_norm, WanUpsample)
        return network

    def means(self, clips: Iterable[Tensor]) -> Tensor:
        """The means of the latents [C, f, h, w] of a video that comes in pieces [3, F, H, W], in [-1, 1].

        One piece makes one latent frame: the first holds one frame, every other as many as a latent frame stands for.
        """
        cache: list[Any] = [None] * sum(isinstance(module, nn.Conv3d) for module in self.encoder.modules())
        pieces = []
        for clip in clips:
            pixels = clip[None].to(self.device, self.dtype)
            packed = patchify(pixels, self.config.patch_size) if self.config.patch_size else pixels
            pieces.append(self.encoder(packed, feat_cache=cache, feat_idx=[0]))
        return self.quant_conv(torch.cat(pieces, dim=2))[0].chunk(2)[0]

    def scaled(self, means: Tensor) -> Tensor:
        """Means [C, ...] -> latents of mean 0 and deviation 1, float32."""
        shape = (-1, *[1] * (means.ndim - 1))
        mean, deviation = (
            torch.tensor(values).to(means.device).view(shape)
            for values in (self.config.latents_mean, self.config.latents_std)
        )
        return (means.float() - mean) * (1.0 / deviation)  # the reference's way; a quotient would round otherwise
