"""`sglang.multimodal_gen.configs.models`: what a component is built from, by kind."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.models.base import ArchConfig, ModelConfig
from omnimuse.compat.sglang.configs.models.dits.base import DiTArchConfig, DiTConfig
from omnimuse.compat.sglang.configs.models.encoders.base import EncoderArchConfig, EncoderConfig
from omnimuse.compat.sglang.configs.models.vaes.base import VAEArchConfig, VAEConfig

__all__ = [
    "ArchConfig",
    "DiTArchConfig",
    "DiTConfig",
    "EncoderArchConfig",
    "EncoderConfig",
    "ModelConfig",
    "VAEArchConfig",
    "VAEConfig",
]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
