"""Tiny random checkpoints of GLM-Image, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two blocks, 64 tokens of the prior), T5 of width 24 that reads bytes, 16-channel
VAE with factor 8 and a mean and a deviation per channel. The language model and its processor are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
)
from PIL import Image
from torch import Tensor
from transformers import ByT5Tokenizer, T5EncoderModel

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, drawn, of_picture, photo

CODES = 64


def transformer() -> GlmImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return GlmImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=encoders.TEXT_WIDTH,
        time_embed_dim=24,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=CODES,
    )


def vae() -> AutoencoderKL:
    """As published: neither factor nor shift, but statistics of every channel."""
    generator = torch.Generator().manual_seed(5)
    made = parts.kl_autoencoder()
    made.register_to_config(
        latents_mean=torch.randn(16, generator=generator).tolist(),
        latents_std=(0.5 + torch.rand(16, generator=generator)).tolist(),
    )
    return made


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ByT5Tokenizer(extra_ids=0)
    words.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, partial(encoders.t5_encoder, len(words)))
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, vae)
    shift = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    components = {
        "processor": None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "ByT5Tokenizer"),
        "transformer": ("diffusers", "GlmImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "vision_language_encoder": None,
    }
    parts.write_index(folder, "GlmImagePipeline", components)
    return folder


def reference(folder: Path, wishes: Sequence[Wish], output_type: str) -> list[Tensor]:
    """What the reference makes of every wish, given what its language model would have said."""
    pipe = GlmImagePipeline(
        tokenizer=ByT5Tokenizer.from_pretrained(folder / "tokenizer"),
        processor=None,
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder"),
        vision_language_encoder=None,
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        transformer=GlmImageTransformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    results = []
    for wish in wishes:
        extra = dict(wish.params.extra or {})  # type: ignore[call-overload]
        given: dict[str, Any] = {"prior_token_ids": torch.tensor([extra["prior_token_ids"]])}
        if wish.images:
            given["image"] = wish.images
            given["prior_token_image_ids"] = [torch.tensor(extra["prior_token_image_ids"])]
            given["source_image_grid_thw"] = [torch.tensor([_grid(image) for image in wish.images])]
        results.append(drawn(pipe, wish, output_type, **given))
    return results


def _grid(image: Image.Image) -> list[int]:
    """Frames, rows and columns of the patches of a picture."""
    return [1, image.height // 16, image.width // 16]


def _asked(params: DiffusionParams, tokens: int, *images: Image.Image) -> DiffusionParams:
    """Drawn as a prior that its seed makes up says, of what is drawn and of pictures that are shown."""
    assert params.height is not None
    assert params.width is not None
    assert params.seed is not None
    generator = torch.Generator().manual_seed(params.seed)
    prior = torch.randint(0, CODES, (params.height * params.width // 256,), generator=generator)
    extra = {"prior_token_ids": prior.tolist()}
    if images:
        patches = sum(math.prod(_grid(image)) for image in images)
        extra["prior_token_image_ids"] = torch.randint(0, CODES, (patches,), generator=generator).tolist()
    return replace(params, max_sequence_length=tokens, extra=extra)


_SHOWN = (photo(70, 100), photo(48, 40))


FAMILIES = (
    Family(
        arch="GlmImagePipeline",
        build=build,
        wishes=(
            Wish("a red circle", None, _asked(of_picture(4, 4.0, 64, 64, 7), 64)),
            Wish(
                "\u201ctwo squares\u201d and 'a long story about them', 「更」 \"and so on\"",
                None,
                _asked(of_picture(3, 1.0, 96, 64, 8), 16),
            ),
            Wish(
                "make it 'blue'",
                None,
                _asked(of_picture(4, 3.0, 64, 32, 10), 64, *_SHOWN),
                _SHOWN[0],
                others=_SHOWN[1:],
            ),
            Wish('a "star"', None, _asked(of_picture(5, 5.0, 32, 96, 9), 64)),
        ),
        reference=reference,
        unable=EULER,
        apart="diffusers cannot open",
    ),
)
