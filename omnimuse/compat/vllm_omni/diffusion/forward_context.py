"""`vllm_omni.diffusion.forward_context`: what code deep in a network asks for, while a pipeline runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig


@dataclass(frozen=True)
class ForwardContext:
    """The configuration, the step that all who compute are at (None where there is no one step), and whether what a
    network sees now is this rank's share of the tokens, which are never padded.
    """

    omni_diffusion_config: OmniDiffusionConfig
    denoise_step_idx: int | None
    sp_active: bool = False
    sp_padding_size: int = 0
    sp_original_seq_len: int | None = None

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def get_forward_context() -> ForwardContext:
    """What holds now."""
    found = here("get_forward_context")
    return ForwardContext(found.config, found.step, found.spread)


def is_forward_context_available() -> bool:
    """Whether a pipeline runs."""
    return inside()


def set_forward_context_denoise_step_idx(step: int | None) -> None:
    """A pipeline that owns its loop says at which step it is."""
    here("set_forward_context_denoise_step_idx").step = step


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
