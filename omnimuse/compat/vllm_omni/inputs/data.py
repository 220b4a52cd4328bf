"""`vllm_omni.inputs.data`: prompts and sampling parameters, as scripts write and pipelines read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm.sampling_params import Chosen


class OmniTextPrompt(TypedDict, total=False):
    """A prompt as a dict; pictures and sounds lie in `multi_modal_data`, under "image" and "audio"."""

    prompt: str
    negative_prompt: str | None
    multi_modal_data: dict[str, Any]
    additional_information: dict[str, Any]


OmniPromptType = str | OmniTextPrompt | Mapping[str, Any]


@dataclass(kw_only=True)
class _Shapes:
    """How large the output is."""

    height: int | None = None
    width: int | None = None
    resolution: int | None = None
    num_frames: int = 1
    fps: float | None = None
    seconds: float | None = None
    audio_end_in_s: float | None = None
    audio_length: float | None = None


@dataclass(kw_only=True)
class _Guiding:
    """How strongly the prompt steers; a scale of 0 means that nobody chose one."""

    guidance_scale: float = 0.0
    guidance_scale_provided: bool = False
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    cfg_normalize: bool = False
    guidance_rescale: float = 0.0
    do_classifier_free_guidance: bool = False


@dataclass(kw_only=True)
class _Schedule:
    """How the noise falls, and from where."""

    num_inference_steps: int | None = None
    timesteps: Any = None
    sigmas: list[float] | None = None
    eta: float = 0.0
    flow_shift: float | None = None
    boundary_ratio: float | None = None
    strength: float | None = None
    latents: Tensor | None = None
    image_latent: Tensor | None = None


@dataclass(kw_only=True)
class OmniDiffusionSamplingParams(_Shapes, _Guiding, _Schedule, Chosen):
    """What a request chose. `generator` draws its noise; `extra_args` holds the pipeline's own choices."""

    seed: int | None = None
    generator: torch.Generator | None = None
    generator_device: str | None = None
    num_outputs_per_prompt: int = 1
    max_sequence_length: int | None = None
    output_type: str = "pil"
    extra_args: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
