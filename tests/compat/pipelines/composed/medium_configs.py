"""The facts of a model of two text encoders whose network is diffusers' own, guided by two predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from omnimuse.compat.sglang.configs.models import DiTConfig, EncoderConfig
from omnimuse.compat.sglang.configs.models.dits.base import DiTArchConfig
from omnimuse.compat.sglang.configs.models.encoders.base import TextEncoderArchConfig
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig, preprocess_text
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams


@dataclass
class MediumSamplingParams(SamplingParams):
    num_frames: int = 1
    num_inference_steps: int = 28
    guidance_scale: float = 7.0
    height: int | None = 128
    width: int | None = 128
    empty_tokens: int = 256


@dataclass
class MediumEditSamplingParams(MediumSamplingParams):
    strength: float = 0.6


@dataclass
class MediumArchConfig(DiTArchConfig):
    in_channels: int = 16
    joint_attention_dim: int = 0

    def __post_init__(self):
        self.num_channels_latents = self.in_channels


@dataclass
class MediumDiTConfig(DiTConfig):
    arch_config: DiTArchConfig = field(default_factory=MediumArchConfig)


def clip_config():
    return EncoderConfig(arch_config=TextEncoderArchConfig(text_len=77))


def last_but_one(outputs, _text_inputs):
    return outputs.hidden_states[-2]


@dataclass
class MediumPipelineConfig(PipelineConfig):
    task_type: ModelTaskType = ModelTaskType.T2I
    should_use_guidance: bool = False
    vae_precision: str = "fp32"
    dit_config: DiTConfig = field(default_factory=MediumDiTConfig)
    text_encoder_configs: tuple[EncoderConfig, ...] = field(default_factory=lambda: (clip_config(), clip_config()))
    text_encoder_precisions: tuple[str, ...] = ("fp16", "fp16")
    preprocess_text_funcs: tuple[Callable[[str], str], ...] = (preprocess_text, preprocess_text)
    postprocess_text_funcs: tuple[Callable[..., torch.Tensor], ...] = (last_but_one, last_but_one)

    def tokenize_prompt(self, prompt, tokenizer, tok_kwargs):
        tokens = tokenizer(prompt, **tok_kwargs)
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
        return tokens

    def prepare_latent_shape(self, batch, batch_size, num_frames):
        cell = self.vae_config.arch_config.vae_scale_factor
        return (batch_size, self.dit_config.num_channels_latents, batch.height // cell, batch.width // cell)

    def prepare_pos_cond_kwargs(self, batch, device, rotary_emb, dtype):
        return {"pooled_projections": batch.pooled_embeds[0], "no_such_argument": 1}

    def prepare_neg_cond_kwargs(self, batch, device, rotary_emb, dtype):
        return {"pooled_projections": batch.neg_pooled_embeds[0]}


@dataclass
class MediumEditPipelineConfig(MediumPipelineConfig):
    task_type: ModelTaskType = ModelTaskType.TI2I
