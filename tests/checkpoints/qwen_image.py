"""Tiny random checkpoints of the Qwen-Image kinds, in the layout that diffusers saves, and what the reference draws.

Transformer of width 32 (2 heads of 16, two blocks), Qwen2.5-VL text encoder of width 64, video autoencoder of 8 to 16
channels with factor 8 and the published means and deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor
from transformers import Qwen2Tokenizer

from omnimuse.models.qwen_image.pipeline import AFTER, BEFORE
from tests.checkpoints import parts
from tests.checkpoints.wishes import EULER, Family, Wish, halves, of_true_guidance, photo, reference_of

TEXT_WIDTH = 64
SHIFT = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}


def transformer(layers: int = 2, **options: bool) -> QwenImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        **options,
    )


def vae(channels: int = 3) -> AutoencoderKLQwenImage:
    """Factor 8, the published 16 channels of latents."""
    return AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1, input_channels=channels)


def tokenizer() -> Qwen2Tokenizer:
    """One token per word of the chat around a prompt."""
    return parts.qwen_tokenizer(texts=[BEFORE, AFTER])


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    words.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "text_encoder", seed, lambda: parts.qwen25_vl(len(words), TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, vae)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", SHIFT)
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "transformer": ("diffusers", "QwenImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLQwenImage"),
    }
    parts.write_index(folder, "QwenImagePipeline", components)
    return folder


def guided(wishes: Sequence[Wish]) -> list[Wish]:
    """A blank stands for a negative prompt that nobody gave: the reference would leave guidance out."""
    return [
        replace(wish, negative=" ") if wish.negative is None and (wish.params.true_cfg_scale or 0.0) > 1 else wish
        for wish in wishes
    ]


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish: pictures [3, H, W], or latents [C, h, w]."""
    pictures = _reference(folder, guided(wishes), output_type, dtype)
    return [picture[:, 0] if picture.ndim == 4 else picture for picture in pictures]


_reference = reference_of(QwenImagePipeline, QwenImageImg2ImgPipeline, QwenImageInpaintPipeline)


FAMILIES = (
    Family(
        arch="QwenImagePipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", of_true_guidance(4.0, 4, 64, 64, 7)),
            Wish("Two squares, and a long story about them. " * 9, None, of_true_guidance(2.5, 3, 96, 64, 8)),
            Wish("a star", None, replace(of_true_guidance(1.0, 5, 32, 48, 9), max_sequence_length=1024)),
            Wish(
                "a heart",
                "grey",
                replace(of_true_guidance(2.0, 5, 64, 48, 11), strength=0.8),
                photo(50, 40),
                mask=halves(50, 40),
                pad=(0, 20, 0, 10),
            ),
            Wish("a cross", "", replace(of_true_guidance(3.0, 6, 48, 64, 10), strength=0.5), photo(50, 70)),
        ),
        reference=reference,
        least_steps=2,
        unable=EULER,
    ),
)
