"""What the configuration of an autoencoder says about sizes, without torch.

Specs compute limits from it, stages the shapes of latents, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HALVINGS = (False, True, True)
"""diffusers' default for autoencoders of videos: three halvings in space, of which the last two are in time, too."""


def factors(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many frames, and how many pixels a side, one latent stands for."""
    frames, pixels = config.get("temporal_compression_ratio"), config.get("spatial_compression_ratio")
    if frames is not None and pixels is not None:
        return int(frames), int(pixels)
    widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    if widths is not None:
        return 1, 2 ** (len(widths) - 1)
    halvings = config.get("temperal_downsample") or HALVINGS
    temporal, spatial = config.get("scale_factor_temporal"), config.get("scale_factor_spatial")
    return int(temporal or 2 ** sum(halvings)), int(spatial or 2 ** len(halvings))


def factor(config: Mapping[str, Any]) -> int:
    """How many pixels a side one latent stands for."""
    return factors(config)[1]
