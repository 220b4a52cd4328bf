"""The video autoencoder of Wan: diffusers' own, with lighter parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm, WanUpsample

from omnimuse.components.causal_video import lighten


class WanAutoencoder(AutoencoderKLWan):
    """diffusers' network, weights and cache; convolutions, norms and upsampling compute as ours do."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanAutoencoder:
        """The network that vae/config.json describes."""
        network = cast(WanAutoencoder, super().from_config(dict(config)))
        lighten(network, WanCausalConv3d, WanRMS_norm, WanUpsample)
        return network
