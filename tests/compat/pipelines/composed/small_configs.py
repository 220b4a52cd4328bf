"""The facts of a model of packed latents, two text encoders and a guidance that its network is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from omnimuse.compat.sglang.configs.models import DiTConfig, EncoderConfig, VAEConfig
from omnimuse.compat.sglang.configs.models.dits.base import DiTArchConfig
from omnimuse.compat.sglang.configs.models.encoders.base import BaseEncoderOutput, TextEncoderArchConfig
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig, preprocess_text
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.compat.sglang.runtime.distributed import (
    get_sp_parallel_rank,
    get_sp_world_size,
    sequence_model_parallel_all_gather,
)


@dataclass
class SmallSamplingParams(SamplingParams):
    num_frames: int = 1
    negative_prompt: str | None = None
    num_inference_steps: int = 28
    guidance_scale: float = 3.5
    height: int | None = 128
    width: int | None = 128


@dataclass
class SmallDiTArchConfig(DiTArchConfig):
    in_channels: int = 64
    num_layers: int = 0
    num_single_layers: int = 0
    attention_head_dim: int = 0
    joint_attention_dim: int = 0
    pooled_projection_dim: int = 0
    guidance_embeds: bool = True
    axes_dims_rope: tuple[int, ...] = ()

    def __post_init__(self):
        self.hidden_size = self.num_attention_heads * self.attention_head_dim
        self.num_channels_latents = self.in_channels // 4


@dataclass
class SmallDiTConfig(DiTConfig):
    arch_config: DiTArchConfig = field(default_factory=SmallDiTArchConfig)


def of_text(length: int):
    return EncoderConfig(arch_config=TextEncoderArchConfig(text_len=length))


def whole_text(outputs: BaseEncoderOutput, _text_inputs) -> torch.Tensor:
    return outputs.pooler_output


def every_token(outputs: BaseEncoderOutput, _text_inputs) -> torch.Tensor:
    return outputs.last_hidden_state


@dataclass
class SmallPipelineConfig(PipelineConfig):
    task_type: ModelTaskType = ModelTaskType.T2I
    embedded_cfg_scale: float = 3.5
    vae_tiling: bool = False
    vae_sp: bool = False
    dit_config: DiTConfig = field(default_factory=SmallDiTConfig)
    vae_config: VAEConfig = field(default_factory=VAEConfig)
    text_encoder_configs: tuple[EncoderConfig, ...] = field(default_factory=lambda: (of_text(77), of_text(24)))
    text_encoder_precisions: tuple[str, ...] = field(default_factory=lambda: ("bf16", "bf16"))
    preprocess_text_funcs: tuple[Callable[[str], str], ...] = field(
        default_factory=lambda: (preprocess_text, preprocess_text)
    )
    postprocess_text_funcs: tuple[Callable[..., torch.Tensor], ...] = field(
        default_factory=lambda: (whole_text, every_token)
    )
    text_encoder_extra_args: list[dict | None] = field(default_factory=lambda: [{}, None])

    def tokenize_prompt(self, prompt, tokenizer, tok_kwargs):
        tokens = tokenizer(prompt, **tok_kwargs)
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])  # padding is read, too
        return tokens

    def prepare_sigmas(self, sigmas, num_inference_steps):
        return np.linspace(1.0, 1 / num_inference_steps, num_inference_steps) if sigmas is None else sigmas

    def _cells(self, batch):
        patch = self.vae_config.arch_config.vae_scale_factor * 2
        return batch.height // patch, batch.width // patch

    def prepare_latent_shape(self, batch, batch_size, num_frames):
        height, width = self._cells(batch)
        return (batch_size, self.dit_config.num_channels_latents, 2 * height, 2 * width)

    def pack_latents(self, latents, batch_size, batch):
        height, width = self._cells(batch)
        latents = latents.view(batch_size, -1, height, 2, width, 2).permute(0, 2, 4, 1, 3, 5)
        return latents.reshape(batch_size, height * width, self.dit_config.in_channels)

    def shard_latents_for_sp(self, batch, latents):
        ranks = get_sp_world_size()
        if ranks == 1:
            return latents, False
        return latents.chunk(ranks, dim=1)[get_sp_parallel_rank()], True

    def gather_latents_for_sp(self, latents):
        return sequence_model_parallel_all_gather(latents.contiguous(), dim=1)

    def post_denoising_loop(self, latents, batch):
        height, width = self._cells(batch)
        latents = latents.view(latents.shape[0], height, width, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return latents.reshape(latents.shape[0], -1, 2 * height, 2 * width)

    def get_pos_prompt_embeds(self, batch):
        return batch.prompt_embeds[1]

    def get_neg_prompt_embeds(self, batch):
        return batch.negative_prompt_embeds[1]

    def get_freqs_cis(self, embeds, batch, device, rotary_emb):
        height, width = self._cells(batch)
        picture = torch.zeros(height, width, 3, device=device)
        picture[..., 1] += torch.arange(height, device=device)[:, None]
        picture[..., 2] += torch.arange(width, device=device)[None, :]
        picture = picture.view(-1, 3)
        if batch.did_sp_shard_latents:
            picture = picture.chunk(get_sp_world_size())[get_sp_parallel_rank()]
        ids = torch.cat([torch.zeros(embeds.shape[1], 3, device=device), picture])
        return rotary_emb(ids)

    def prepare_pos_cond_kwargs(self, batch, device, rotary_emb, dtype):
        return {
            "freqs_cis": self.get_freqs_cis(batch.prompt_embeds[1], batch, device, rotary_emb),
            "pooled_projections": batch.pooled_embeds[0],
        }

    def prepare_neg_cond_kwargs(self, batch, device, rotary_emb, dtype):
        return {
            "freqs_cis": self.get_freqs_cis(batch.negative_prompt_embeds[1], batch, device, rotary_emb),
            "pooled_projections": batch.neg_pooled_embeds[0],
        }
