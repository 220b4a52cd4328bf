"""`sglang.multimodal_gen.runtime.models.dits.base`: a denoising network of a plugin's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.models.dits.base import DiTConfig


class BaseDiT(nn.Module, ABC):
    """A denoising network. `param_names_mapping` says which stored names become which of its parameters', as patterns.

    Its other tables are declarations of features that are ours, outside of it.
    """

    _fsdp_shard_conditions: ClassVar[Sequence[Callable[..., bool]]] = ()
    _compile_conditions: ClassVar[Sequence[Callable[..., bool]]] = ()
    _supported_attention_backends: ClassVar[Any] = ()
    param_names_mapping: ClassVar[Mapping[str, Any]] = {}
    reverse_param_names_mapping: ClassVar[Mapping[str, Any]] = {}
    hidden_size: int
    num_attention_heads: int
    num_channels_latents: int

    def __init__(self, config: DiTConfig, hf_config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__()
        self.config = config
        self.hf_config = hf_config

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """(hidden_states, encoder_hidden_states, timestep ...) -> a prediction."""


class CachableDiT(BaseDiT):
    """One whose steps may be cached: here by an extractor that a file registers for its class (docs/compat.md), which
    stands in the place of `forward`, and not in it.
    """


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
