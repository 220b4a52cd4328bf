"""`sglang.multimodal_gen.configs.models.dits.base`: what a denoising network is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.models.base import ArchConfig, ModelConfig


@dataclass
class DiTArchConfig(ArchConfig):
    """A denoising network; `param_names_mapping` says which stored names become which, as patterns."""

    param_names_mapping: Mapping[str, Any] = field(default_factory=dict)
    reverse_param_names_mapping: Mapping[str, Any] = field(default_factory=dict)
    lora_param_names_mapping: Mapping[str, Any] = field(default_factory=dict)
    _fsdp_shard_conditions: list[Callable[..., bool]] = field(default_factory=list)
    _compile_conditions: list[Callable[..., bool]] = field(default_factory=list)
    hidden_size: int = 0
    num_attention_heads: int = 0
    num_channels_latents: int = 0
    exclude_lora_layers: list[str] = field(default_factory=list)
    boundary_ratio: float | None = None


@dataclass
class DiTConfig(ModelConfig):
    """The same, with what is chosen for it besides."""

    arch_config: ArchConfig = field(default_factory=DiTArchConfig)
    prefix: str = ""
    quant_config: Any = None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
