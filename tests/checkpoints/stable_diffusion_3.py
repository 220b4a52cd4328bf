"""Tiny random checkpoints of Stable Diffusion 3 and 3.5, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, three blocks, places for 16 x 16 patches), two CLIP text encoders of width 16
and 24 whose pads differ, T5 of width 48, 16-channel VAE with factor 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import Family, Wish, halves, of_picture, photo, reference_of

WIDTHS = (16, 24)  # of the two CLIP encoders; what they project to is half as much again
TEXT_WIDTH = 48


def transformer(kind: str) -> SD3Transformer2DModel:
    """The network of the reference, small; still to be drawn."""
    newer = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if kind == "3.5-medium" else {}
    return SD3Transformer2DModel(
        sample_size=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=sum(width // 2 * 3 for width in WIDTHS),
        pos_embed_max_size=16,
        **newer,
    )


def clip_encoder(vocabulary: int, width: int) -> CLIPTextModelWithProjection:
    """As published: an end token of 2 that no vocabulary has, so the highest id of a prompt is taken for its end."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width // 2 * 3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def second_tokenizer() -> CLIPTokenizer:
    """As published with the second encoder: pads are exclamation marks."""
    tokenizer = encoders.clip_tokenizer()
    tokenizer.pad_token = "!"
    return tokenizer


def build(folder: Path, kind: str = "3.5-medium", *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it; the first generation (`kind` "3") comes without T5."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers: dict[str, Any] = {"tokenizer": encoders.clip_tokenizer(), "tokenizer_2": second_tokenizer()}
    readers: dict[str, Any] = {
        name: partial(clip_encoder, len(tokenizers["tokenizer"]), width)
        for name, width in zip(("text_encoder", "text_encoder_2"), WIDTHS, strict=True)
    }
    if with_t5 := kind != "3":
        tokenizers["tokenizer_3"] = encoders.t5_tokenizer()
        readers["text_encoder_3"] = partial(encoders.t5_encoder, len(tokenizers["tokenizer_3"]), TEXT_WIDTH)
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    for name, encoder in readers.items():
        parts.save_module(folder, name, seed, encoder)
    parts.save_module(folder, "transformer", seed, partial(transformer, kind))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    components = {
        "feature_extractor": None,
        "image_encoder": None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_3": ("transformers", "T5EncoderModel") if with_t5 else None,
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
        "tokenizer_3": ("transformers", "T5TokenizerFast") if with_t5 else None,
        "transformer": ("diffusers", "SD3Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "StableDiffusion3Pipeline", components)
    return folder


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish. Its inpainting pipeline forgets the shift of latents that it decodes."""
    made = _reference(folder, wishes, output_type, dtype)
    if output_type == "latent" or not any(wish.mask for wish in wishes):
        return made
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
    for index, wish in enumerate(wishes):
        if wish.mask is not None:
            [latents] = _reference(folder, [wish], "latent", dtype)
            with torch.no_grad():
                pixels = vae.decode(latents[None] / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
            made[index] = (pixels / 2 + 0.5).clamp(0, 1)
    return made


_reference = reference_of(StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline)
_MEDIUM = replace(of_picture(4, 4.0, 64, 64, 7), max_sequence_length=24)

SKIPPING = {
    "skip_guidance_layers": [0, 1],
    "skip_layer_guidance_scale": 2.0,
    "skip_layer_guidance_start": 0.2,
    "skip_layer_guidance_stop": 0.7,
}
"""Of six steps, those that come third to fifth."""

FAMILIES = (
    Family(
        arch="StableDiffusion3Pipeline",
        kind="3.5-medium",
        build=build,
        wishes=(
            Wish("a red circle", None, _MEDIUM),
            Wish(
                "Two squares, and a long story about them. " * 12,
                "blurry, grey",
                replace(of_picture(3, 2.0, 96, 64, 8), max_sequence_length=32),
            ),
            Wish("a star", "", replace(of_picture(5, 5.0, 32, 48, 9), max_sequence_length=24)),
            Wish(
                "a heart",
                None,
                replace(_MEDIUM, num_inference_steps=5, width=48, strength=0.8, seed=11),
                photo(50, 70),
                mask=halves(50, 70),
            ),
            Wish("a cross", "grey", replace(_MEDIUM, num_inference_steps=6, height=48, strength=0.5), photo(50, 70)),
            Wish("a cross", None, replace(_MEDIUM, num_inference_steps=6, width=48, seed=12, extra=SKIPPING)),
        ),
        reference=reference,
    ),
    Family(
        arch="StableDiffusion3Pipeline",
        kind="3",
        build=partial(build, kind="3"),
        wishes=(
            Wish("a red circle", "grey", replace(_MEDIUM, width=96)),
            Wish("two squares and a star", None, replace(_MEDIUM, num_inference_steps=3, height=256, seed=8)),
            Wish("a star", None, replace(_MEDIUM, guidance_scale=1.0, width=32, max_sequence_length=16, seed=9)),
        ),
        reference=reference_of(StableDiffusion3Pipeline, absent=("text_encoder_3", "tokenizer_3")),
    ),
)
