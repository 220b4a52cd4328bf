"""`sglang.multimodal_gen.configs.models.vaes.base`: what an autoencoder is built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.models.base import ArchConfig, ModelConfig


@dataclass
class VAEArchConfig(ArchConfig):
    """An autoencoder: what its latents are divided by, and how many pixels and frames one of them stands for.

    The two names of the number of pixels are one number, told by the widths of its blocks where nothing says it.
    """

    scaling_factor: Any = 1.0
    shift_factor: Any = None
    temporal_compression_ratio: int = 1
    spatial_compression_ratio: int = 0
    vae_scale_factor: int = 0

    def __post_init__(self) -> None:
        widths = self.extra_attrs.get("block_out_channels")
        told = 2 ** (len(widths) - 1) if isinstance(widths, list | tuple) else 0
        self.spatial_compression_ratio = self.spatial_compression_ratio or self.vae_scale_factor or told
        self.vae_scale_factor = self.vae_scale_factor or self.spatial_compression_ratio
        if self.scaling_factor is None:
            self.scaling_factor = 1.0


@dataclass
class VAEConfig(ModelConfig):
    """The same, with what is chosen for it besides. Tiles are chosen where the engine starts."""

    arch_config: ArchConfig = field(default_factory=VAEArchConfig)
    load_encoder: bool = True
    load_decoder: bool = True
    use_temporal_scaling_frames: bool = True

    def get_vae_scale_factor(self) -> int:
        """Pixels to a cell of latents, along a side."""
        return int(self.arch_config.vae_scale_factor)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
