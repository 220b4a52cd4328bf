"""`vllm_omni.diffusion.data`: what a pipeline is made from, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.core.errors import ModelError


@dataclass
class DiffusionOutput:
    """What a pipeline made: `output` for its post-process function, and perhaps how long its parts took, by name."""

    output: Any = None
    error: str | None = None
    stage_durations: dict[str, float] | None = None
    custom_output: dict[str, Any] = field(default_factory=dict)
    trajectory_latents: Any = None
    trajectory_timesteps: Any = None
    finished: bool = True
    chunk_index: int = 0
    total_chunks: int = 1
    peak_memory_mb: float = 0.0


@dataclass
class DiffusionParallelConfig:
    """How many ranks share the work, along every axis; one name for each of ours (docs/parallel.md)."""

    tensor_parallel_size: int = 1
    ulysses_degree: int = 1
    ring_degree: int = 1
    cfg_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    vae_patch_parallel_size: int = 1
    use_hsdp: bool = False
    hsdp_shard_size: int = -1
    hsdp_replicate_size: int = 1

    @property
    def sequence_parallel_size(self) -> int:
        """How many share the tokens of a row."""
        return self.ulysses_degree * self.ring_degree

    @property
    def mask_sp_padding(self) -> bool:
        """Whether pads of shared tokens are hidden: there are none."""
        return False

    @property
    def world_size(self) -> int:
        """All ranks."""
        work = self.tensor_parallel_size * self.cfg_parallel_size * self.pipeline_parallel_size
        return self.sequence_parallel_size * self.data_parallel_size * work

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


class TransformerConfig(Mapping[str, Any]):
    """The `config.json` of the transformer: a mapping whose keys are attributes, too. `params` is a plain dict."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)

    def __getitem__(self, name: str) -> Any:
        return self.params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "params" or name not in self.params:
            raise no_attribute(self, name)
        return self.params[name]

    def to_dict(self) -> dict[str, Any]:
        """A copy of the mapping."""
        return dict(self.params)


class Extras(dict[str, Any]):
    """What a pipeline is told besides: `auxiliary_text_encoder`, the folder of an encoder that its checkpoint lacks."""

    def __missing__(self, name: str) -> Any:
        raise ModelError(
            f"od_config.extras has no {name!r} here; where a pipeline wants the name of a model to download instead of "
            "an encoder, start the engine with auxiliary_text_encoder=FOLDER"
        )


@dataclass(kw_only=True)
class _Running:
    """What was chosen of how it runs. Those features are ours, outside of the pipeline; it may look."""

    parallel_config: DiffusionParallelConfig = field(default_factory=DiffusionParallelConfig)
    cache_backend: str = "none"
    cache_config: Mapping[str, Any] = field(default_factory=dict)
    quantization_config: Any = None
    enable_cpu_offload: bool = False
    enable_layerwise_offload: bool = False
    enforce_eager: bool = True
    vae_use_slicing: bool = False
    vae_use_tiling: bool = False
    step_execution: bool = False
    enable_diffusion_pipeline_profiler: bool = False


@dataclass(kw_only=True)
class OmniDiffusionConfig(_Running):
    """What a pipeline is made from: the folder of its checkpoint, and what that says of itself.

    `tf_model_config` is the transformer's configuration, `model_config` what `model_index.json` says besides the
    components, `dtype` what networks compute in.
    """

    model: str
    model_class_name: str
    dtype: torch.dtype
    tf_model_config: TransformerConfig = field(default_factory=lambda: TransformerConfig({}))
    model_config: Mapping[str, Any] = field(default_factory=dict)
    model_paths: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    output_type: str = "pil"
    trust_remote_code: bool = False
    boundary_ratio: float | None = None
    flow_shift: float | None = None
    lora_path: str | None = None
    custom_pipeline_args: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=lambda: Extras(auxiliary_text_encoder=None))

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
