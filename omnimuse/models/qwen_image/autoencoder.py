"""The autoencoder of Qwen-Image: one of videos, diffusers' own, that is given pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageRMS_norm,
    QwenImageUpsample,
)
from torch import Tensor

from omnimuse.components.causal_video import decode_picture, encode_picture, lighten


class QwenAutoencoder(AutoencoderKLQwenImage):
    """diffusers' network and weights; parts compute as ours do, and pictures go in and come out."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QwenAutoencoder:
        """The network that vae/config.json describes."""
        network = cast(QwenAutoencoder, super().from_config(dict(config)))
        lighten(network, QwenImageCausalConv3d, QwenImageRMS_norm, QwenImageUpsample)
        return network

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 2c, h, w]: means of the latents, then logarithms of their variances."""
        return encode_picture(self, pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, c, h, w], as `encode` gives them -> [B, 3, H, W], mostly in [-1, 1]."""
        return decode_picture(self, latents)
