"""`sglang.multimodal_gen.configs.pipeline_configs.base`: the facts of a model's pipeline, and its functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.sglang.configs.models.dits.base import DiTConfig
from omnimuse.compat.sglang.configs.models.encoders.base import EncoderConfig
from omnimuse.compat.sglang.configs.models.vaes.base import VAEConfig
from omnimuse.compat.sglang.runtime.distributed import (
    get_sp_parallel_rank,
    get_sp_world_size,
    sequence_model_parallel_all_gather,
)
from omnimuse.core.errors import ModelError


class ModelTaskType(Enum):
    """What a pipeline makes (I: a picture, V: a video) and of what (T: a text)."""

    T2I = auto()
    I2I = auto()
    TI2I = auto()
    T2V = auto()
    I2V = auto()
    TI2V = auto()

    def is_image_gen(self) -> bool:
        """Whether pictures come out."""
        return self in (ModelTaskType.T2I, ModelTaskType.I2I, ModelTaskType.TI2I)

    def requires_image_input(self) -> bool:
        """Whether it can do nothing without a picture."""
        return self in (ModelTaskType.I2I, ModelTaskType.I2V)

    def accepts_image_input(self) -> bool:
        """Whether it can be shown one."""
        return self not in (ModelTaskType.T2I, ModelTaskType.T2V)


def preprocess_text(prompt: str) -> str:
    """The prompt as it is."""
    return prompt


def postprocess_text(output: Any, _text_inputs: Any) -> Tensor:
    """What a denoising network reads of an encoder's output; every pipeline has its own."""
    raise NotImplementedError("a PipelineConfig needs one postprocess_text_funcs for each text encoder")


@dataclass(kw_only=True)
class _Kind:
    """What it makes, in the newer and the older way, and how it is guided."""

    task_type: ModelTaskType | None = None
    is_image_gen: bool = False
    i2v_task: bool = False
    ti2v_task: bool = False
    ti2i_task: bool = False
    should_use_guidance: bool = True
    embedded_cfg_scale: float = 6.0
    flow_shift: float | None = None
    boundary_ratio: float | None = None


@dataclass(kw_only=True)
class _Networks:
    """What its networks are built from. On an engine of float32 everything is; else each has its own precision."""

    dit_config: DiTConfig = field(default_factory=DiTConfig)
    dit_precision: str = "bf16"
    vae_config: VAEConfig = field(default_factory=VAEConfig)
    vae_precision: str = "fp32"
    vae_tiling: bool = False
    vae_sp: bool = False
    disable_autocast: bool = True


@dataclass(kw_only=True)
class _Encoders:
    """How texts and pictures are encoded; of each tuple, one for each text encoder, in order."""

    text_encoder_configs: tuple[EncoderConfig, ...] = field(default_factory=lambda: (EncoderConfig(),))
    text_encoder_precisions: tuple[str, ...] = ("fp32",)
    text_encoder_extra_args: Sequence[dict[str, Any] | None] = field(default_factory=lambda: [{}])
    preprocess_text_funcs: tuple[Callable[[str], str], ...] = (preprocess_text,)
    postprocess_text_funcs: tuple[Callable[..., Tensor], ...] = (postprocess_text,)
    image_encoder_config: EncoderConfig = field(default_factory=EncoderConfig)
    image_encoder_precision: str = "fp32"
    image_encoder_extra_args: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class PipelineConfig(_Kind, _Networks, _Encoders):
    """The facts of one pipeline. Its methods are what stock stages ask; a subclass overrides those that it needs."""

    model_path: str = ""

    def tokenize_prompt(self, prompt: list[str], tokenizer: Any, tok_kwargs: dict[str, Any]) -> Any:
        """Prompts as tokens: `input_ids` and `attention_mask`."""
        return tokenizer(prompt, **tok_kwargs)

    def prepare_sigmas(self, sigmas: Any, num_inference_steps: int) -> Any:
        """The noise levels a scheduler is given; None: its own."""
        return sigmas

    def prepare_latent_shape(self, batch: Any, batch_size: int, num_frames: int) -> tuple[int, ...]:
        """The shape of the noise: [B, C, f, h, w], of a picture f is 1."""
        cell = self.vae_config.arch_config.spatial_compression_ratio
        channels = self.dit_config.num_channels_latents
        return (batch_size, channels, num_frames, batch.height // cell, batch.width // cell)

    def pack_latents(self, latents: Tensor, batch_size: int, batch: Any) -> Tensor:
        """That noise as the denoising network takes it."""
        return latents

    def maybe_pack_latents(self, latents: Tensor, batch_size: int, batch: Any) -> Tensor:
        """A newer name of `pack_latents`."""
        return self.pack_latents(latents, batch_size, batch)

    def adjust_num_frames(self, num_frames: int) -> int:
        """How many frames are made where so many were asked for."""
        return num_frames

    def set_width_and_height(self, width: int | None, height: int | None, image: Any) -> tuple[int | None, int | None]:
        """The size where nobody chose one; `image` is the picture that came with the prompt."""
        return width, height

    def preprocess_image(self, image: Any, image_processor: Any) -> Any:
        """A picture before it is encoded."""
        return image

    def postprocess_image(self, image: Any) -> Tensor:
        """What a denoising network reads of an image encoder's output."""
        found: Tensor = image.last_hidden_state
        return found

    def postprocess_image_latent(self, latent_condition: Tensor, batch: Any) -> Tensor:
        """A picture's latents as they come to the denoising network."""
        return latent_condition

    def get_pos_prompt_embeds(self, batch: Any) -> Any:
        """What the denoising network reads of the prompt."""
        return batch.prompt_embeds

    def get_neg_prompt_embeds(self, batch: Any) -> Any:
        """The same of the negative prompt."""
        return batch.negative_prompt_embeds

    def prepare_pos_cond_kwargs(
        self, batch: Any, device: torch.device, rotary_emb: Any, dtype: torch.dtype
    ) -> dict[str, Any]:
        """What else it is given with the prompt, by name; names that it does not take are left out."""
        return {}

    def prepare_neg_cond_kwargs(
        self, batch: Any, device: torch.device, rotary_emb: Any, dtype: torch.dtype
    ) -> dict[str, Any]:
        """The same with the negative prompt."""
        return {}

    def slice_noise_pred(self, noise: Tensor, latents: Tensor) -> Tensor:
        """The part of a prediction that belongs to the latents."""
        return noise

    def shard_latents_for_sp(self, batch: Any, latents: Tensor) -> tuple[Tensor, bool]:
        """This rank's part of the latents as the network is given them, and whether it is only a part.

        Here frames [B, C, F, h, w] are shared out; of other latents a configuration of its own says what a part is.
        """
        ranks = get_sp_world_size()
        if ranks == 1 or latents.ndim != 5:
            return latents, False
        if latents.shape[2] % ranks:
            raise ModelError(
                f"{latents.shape[2]} frames of latents cannot be shared evenly by {ranks} ranks; use another number of "
                "frames, or fewer ranks"
            )
        return latents.chunk(ranks, 2)[get_sp_parallel_rank()].contiguous(), True

    def gather_latents_for_sp(self, latents: Tensor) -> Tensor:
        """The parts of all ranks together: of frames [B, C, F, h, w], or of tokens [B, S, D]."""
        return sequence_model_parallel_all_gather(latents, 2 if latents.ndim == 5 else 1)

    def post_denoising_loop(self, latents: Tensor, batch: Any) -> Tensor:
        """Finished latents as the autoencoder takes them."""
        return latents

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
