"""`vllm_omni.diffusion.offloader.config`: which offload was chosen, as a pipeline asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig

DIT_COMPONENT = "dit"
TEXT_ENCODER_COMPONENT = "text_encoder"


class OffloadStrategy(StrEnum):
    """What waits outside the device. Ranks never have parts of what waits, so nothing is distributed here."""

    NONE = "none"
    MODEL_LEVEL = "model_level"
    LAYER_WISE = "layer_wise"
    DISTRIBUTED_LAYER_WISE = "distributed_layer_wise"


@dataclass(frozen=True)
class ResolvedOffload:
    """The strategy, and the kinds of components that it is for. `public` is a selection that is not taken here."""

    strategy: OffloadStrategy
    components: frozenset[str] = frozenset((DIT_COMPONENT,))
    public: None = None

    def offloads(self, component: str) -> bool:
        """Whether it is for that kind."""
        return component in self.components

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def resolve_offload(config: OmniDiffusionConfig) -> ResolvedOffload:
    """What was chosen: `enable_layerwise_offload`, `enable_cpu_offload`, or neither."""
    if config.enable_layerwise_offload:
        return ResolvedOffload(OffloadStrategy.LAYER_WISE)
    return ResolvedOffload(OffloadStrategy.MODEL_LEVEL if config.enable_cpu_offload else OffloadStrategy.NONE)


def resolve_offload_strategy(config: OmniDiffusionConfig) -> OffloadStrategy:
    """The strategy of that."""
    return resolve_offload(config).strategy


def selected_offload_components(config: OmniDiffusionConfig) -> frozenset[str]:
    """The kinds of components of that."""
    return resolve_offload(config).components


def should_offload_component(config: OmniDiffusionConfig, component: str) -> bool:
    """Whether blocks of that kind of component come one at a time."""
    found = resolve_offload(config)
    return found.strategy is OffloadStrategy.LAYER_WISE and found.offloads(component)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
