"""`sglang.multimodal_gen.runtime.pipelines_core.schedule_batch`: what stages hand on, and what the last one gives.

Letters: B batch, S text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.sglang.configs.sample.sampling_params import DataType


@dataclass(kw_only=True)
class _Wanted:
    """Who asks, and for what."""

    data_type: DataType = DataType.IMAGE
    request_id: str | None = None
    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    image_path: Any = None
    num_outputs_per_prompt: int = 1
    seed: int | None = None
    seeds: list[int] | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    sampling_params: Any = None


@dataclass(kw_only=True)
class _Pictures:
    """Pictures that came with the prompt, and what encoders made of them."""

    pil_image: Any = None
    condition_image: Any = None
    pixel_values: Any = None
    preprocessed_image: Tensor | None = None
    image_embeds: list[Tensor] = field(default_factory=list)
    image_latent: Tensor | None = None


@dataclass(kw_only=True)
class _Texts:
    """What encoders made of the prompts: one entry for each text encoder."""

    prompt_embeds: Any = field(default_factory=list)
    negative_prompt_embeds: Any = field(default_factory=list)
    prompt_attention_mask: Any = None
    negative_attention_mask: Any = None
    pooled_embeds: list[Tensor] = field(default_factory=list)
    neg_pooled_embeds: list[Tensor] = field(default_factory=list)
    clip_embedding_pos: list[Tensor] | None = None
    clip_embedding_neg: list[Tensor] | None = None
    max_sequence_length: int | None = None
    do_classifier_free_guidance: bool = False
    is_prompt_processed: bool = False


@dataclass(kw_only=True)
class _Sizes:
    """How large it is, in pixels and frames, and whether networks are given a part of it on each rank."""

    height: int | None = None
    width: int | None = None
    num_frames: int = 1
    fps: Any = None
    height_not_provided: bool = False
    width_not_provided: bool = False
    num_frames_round_down: bool = False
    height_latents: int | None = None
    width_latents: int | None = None
    did_sp_shard_latents: bool = False


@dataclass(kw_only=True)
class _Noise:
    """Latents, and how they are drawn."""

    latents: Tensor | None = None
    raw_latent_shape: Any = None
    noise_pred: Tensor | None = None
    timesteps: Tensor | None = None
    timestep: Any = None
    step_index: int | None = None
    sigmas: list[float] | None = None
    num_inference_steps: int = 50
    n_tokens: int | None = None
    eta: float = 0.0
    boundary_ratio: float | None = None
    extra_step_kwargs: dict[str, Any] = field(default_factory=dict)
    is_cfg_negative: bool = False
    trajectory_timesteps: Any = None
    trajectory_latents: Tensor | None = None


@dataclass(kw_only=True)
class _Strength:
    """How strongly prompts steer."""

    guidance_scale: float = 1.0
    guidance_scale_2: float | None = None
    guidance_rescale: float = 0.0
    true_cfg_scale: float | None = None


@dataclass(kw_only=True)
class _Told:
    """What else is asked for; `extra` is the pipeline's own."""

    return_trajectory_latents: bool = False
    return_trajectory_decoded: bool = False
    save_output: bool = False
    return_frames: bool = True
    enable_teacache: bool = False
    profile: bool = False
    debug: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    output: Any = None


@dataclass(kw_only=True)
class Req(_Told, _Strength, _Noise, _Sizes, _Texts, _Pictures, _Wanted):
    """One output on its way through the stages, each of which fills in what later ones read.

    It is guided where there is a negative prompt and the scale is above 1: `true_cfg_scale` if that was chosen, else
    `guidance_scale`.
    """

    def __post_init__(self) -> None:
        if self.cfg_scale > 1.0 and self.negative_prompt is not None:
            self.do_classifier_free_guidance = True
        if self.guidance_scale_2 is None:
            self.guidance_scale_2 = self.guidance_scale

    @property
    def cfg_scale(self) -> float:
        """By what two predictions are weighed."""
        return self.guidance_scale if self.true_cfg_scale is None else self.true_cfg_scale

    @property
    def batch_size(self) -> int:
        """How many outputs are drawn in one; here always one to a prompt."""
        prompts = len(self.prompt) if isinstance(self.prompt, list) else 1
        return prompts * self.num_outputs_per_prompt

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


ForwardBatch = Req
"""Its older name."""


@dataclass(kw_only=True)
class OutputBatch:
    """What the last stage gives: pixels in [0, 1], [B, C, h, w] or, of a video, [B, C, f, h, w]."""

    output: Any = None
    trajectory_timesteps: Any = None
    trajectory_latents: Tensor | None = None
    trajectory_decoded: list[Tensor] | None = None
    error: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
