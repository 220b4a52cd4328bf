"""`vllm_omni.diffusion.offloader.offload_plan`: what of a pipeline may wait outside the device, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name


@dataclass(frozen=True)
class OffloadPlan:
    """A pipeline's `_offload_plan`, which says what comes one at a time with `enable_layerwise_offload`.

    `block_attrs` and `encoder_block_attrs` name the lists of blocks in each denoiser and encoder, `offload_submodules`
    the list in a child of every denoiser, and `on_demand_component_paths` parts that come when they are called.
    `resident_dit_paths`, `encoder_component_types` and `encoder_dlo_weight_replication` are about choices that there
    are none of here: every block waits, of every encoder that is named, and ranks send each other no weights.
    """

    on_demand_component_paths: frozenset[str] = frozenset()
    block_attrs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    offload_submodules: Mapping[str, str] = field(default_factory=dict)
    resident_dit_paths: frozenset[str] = frozenset()
    encoder_component_types: Mapping[str, str] = field(default_factory=dict)
    encoder_block_attrs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    encoder_dlo_weight_replication: frozenset[str] = frozenset()


def get_offload_plan(pipeline: nn.Module) -> OffloadPlan | None:
    """What a pipeline, or its class, declares; None where it declares nothing."""
    declared: Any = pipeline
    return declared._offload_plan if hasattr(pipeline, "_offload_plan") else None


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
