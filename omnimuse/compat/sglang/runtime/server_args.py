"""`sglang.multimodal_gen.runtime.server_args`: what was chosen when the engine started, as stages may look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.contract.surroundings import here


@dataclass(kw_only=True)
class _Sharing:
    """How many ranks share the work, and where weights wait: those features are ours, outside of the pipeline."""

    num_gpus: int = 1
    tp_size: int = 1
    sp_degree: int = 1
    ulysses_degree: int = 1
    ring_degree: int = 1
    enable_cfg_parallel: bool = False
    dit_cpu_offload: bool = False
    text_encoder_cpu_offload: bool = False
    image_encoder_cpu_offload: bool = False
    vae_cpu_offload: bool = False
    enable_torch_compile: bool = False


@dataclass(kw_only=True)
class ServerArgs(_Sharing):
    """The model, the facts of its pipeline, and how it runs; without autocast, since networks have their formats."""

    model_path: str
    pipeline_config: Any
    disable_autocast: bool = True
    output_type: str = "pil"
    trust_remote_code: bool = False
    enable_stage_verification: bool = True

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def get_global_server_args() -> ServerArgs:
    """Those of the engine that runs the code which asks."""
    found = here("get_global_server_args").config
    assert isinstance(found, ServerArgs)
    return found


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
