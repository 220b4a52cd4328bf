"""`vllm_omni.diffusion.model_loader.diffusers_loader`: where a pipeline's weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_name


@dataclass(frozen=True)
class ComponentSource:
    """Weights of one part of a pipeline: those in `subfolder` of `model_or_path`, called by `prefix` and their names.

    Pickles are never opened, so `fall_back_to_pt` finds nothing that safetensors do not have.
    """

    model_or_path: str
    subfolder: str | None = None
    revision: str | None = None
    prefix: str = ""
    fall_back_to_pt: bool = True
    allow_patterns_overrides: list[str] | None = None


class DiffusersPipelineLoader:
    """The loader, of which pipelines use the record alone; `compat/contract/weights.py` does its work."""

    ComponentSource = ComponentSource


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
