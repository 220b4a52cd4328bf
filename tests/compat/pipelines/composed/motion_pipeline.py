"""A pipeline of videos: two experts above and below a boundary, by the stages that a base class adds itself."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from omnimuse.compat.sglang.configs.models import DiTConfig, EncoderConfig, VAEConfig
from omnimuse.compat.sglang.configs.models.dits.base import DiTArchConfig
from omnimuse.compat.sglang.configs.models.encoders.base import TextEncoderArchConfig
from omnimuse.compat.sglang.configs.models.vaes.base import VAEArchConfig
from omnimuse.compat.sglang.configs.pipeline_configs.base import ModelTaskType, PipelineConfig
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from omnimuse.compat.sglang.runtime.pipelines_core.stages import InputValidationStage
from omnimuse.compat.sglang.runtime.server_args import ServerArgs


@dataclass
class MotionSamplingParams(SamplingParams):
    num_frames: int = 9
    fps: int = 16
    num_inference_steps: int = 40
    guidance_scale: float = 4.0
    guidance_scale_2: float | None = 3.0
    height: int | None = 32
    width: int | None = 32


@dataclass
class MotionArchConfig(DiTArchConfig):
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self):
        self.num_channels_latents = self.out_channels


@dataclass
class MotionVAEArchConfig(VAEArchConfig):
    z_dim: int = 16
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self):
        self.spatial_compression_ratio = self.vae_scale_factor = self.scale_factor_spatial
        self.temporal_compression_ratio = self.scale_factor_temporal


def cleaned(prompt: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def without_pads(outputs, tokens):
    return outputs.last_hidden_state * tokens["attention_mask"][..., None]


@dataclass
class MotionPipelineConfig(PipelineConfig):
    task_type: ModelTaskType = ModelTaskType.T2V
    boundary_ratio: float | None = 0.875
    dit_config: DiTConfig = field(default_factory=lambda: DiTConfig(arch_config=MotionArchConfig()))
    vae_config: VAEConfig = field(default_factory=lambda: VAEConfig(arch_config=MotionVAEArchConfig()))
    text_encoder_configs: tuple[EncoderConfig, ...] = field(
        default_factory=lambda: (EncoderConfig(arch_config=TextEncoderArchConfig(text_len=32)),)
    )
    preprocess_text_funcs: tuple[Callable[[str], str], ...] = (cleaned,)
    postprocess_text_funcs: tuple[Callable[..., torch.Tensor], ...] = (without_pads,)

    def adjust_num_frames(self, num_frames):
        ratio = self.vae_config.arch_config.temporal_compression_ratio
        return (num_frames - 1) // ratio * ratio + 1


class MotionPipeline(ComposedPipelineBase):
    pipeline_name = "ComposedMotionPipeline"
    is_video_pipeline = True
    pipeline_config_cls = MotionPipelineConfig
    sampling_params_cls = MotionSamplingParams
    _required_config_modules = ["text_encoder", "tokenizer", "vae", "transformer", "transformer_2", "scheduler"]

    def create_pipeline_stages(self, server_args: ServerArgs):
        self.add_stage(InputValidationStage())
        self.add_standard_text_encoding_stage()
        self.add_standard_timestep_preparation_stage()
        self.add_standard_latent_preparation_stage()
        self.add_standard_denoising_stage()
        self.add_standard_decoding_stage()


EntryClass = MotionPipeline
