"""A tiny random checkpoint of the LongCat-Image-Edit kind, as diffusers saves it, and what the reference makes of it.

The networks are those of `longcat_image.py`; the text encoder is one that sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from torch import Tensor
from transformers import Qwen2Tokenizer

from omnimuse.models.longcat_image.pipeline import AFTER
from omnimuse.models.longcat_image_edit.pipeline import BEFORE
from tests.checkpoints import longcat_image, parts, seeing
from tests.checkpoints.wishes import EULER, Family, Wish, drawn, of_picture, photo


def tokenizer() -> Qwen2Tokenizer:
    """One token per word of the chat around a prompt, and those that stand around a picture and for its pieces."""
    return seeing.tokenizer([BEFORE, AFTER])


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    seeing_parts = seeing.save(folder, seed, tokenizer(), longcat_image.TEXT_WIDTH, "text_processor")
    parts.save_module(folder, "transformer", seed, longcat_image.transformer)
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
    components = {
        **seeing_parts,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "transformer": ("diffusers", "LongCatImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "LongCatImageEditPipeline", components)
    return folder


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish, in the size that was asked for: a picture [3, H, W], or latents."""
    module = pipeline_longcat_image_edit
    pipe = module.LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        transformer=LongCatImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        **seeing.corrected(folder, "text_processor", dtype),
    )
    results = []
    for wish in wishes:
        with seeing.sized(module, wish):
            results.append(drawn(pipe, wish, output_type))
    return results


FAMILIES = (
    Family(
        arch="LongCatImageEditPipeline",
        build=build,
        wishes=(
            Wish("a red 'star' that isn't blue", "blurry, grey", of_picture(4, 4.0, 64, 64, 7), photo(70, 50)),
            Wish("two squares and a long story " * 30, None, of_picture(3, 1.0, 96, 64, 8), photo(40, 100)),
            Wish('a “cross”, "and a heart"', None, of_picture(5, 5.0, 32, 48, 9), photo(130, 65)),
        ),
        reference=reference,
        unable=EULER,
        lent=partial(seeing.lent, module=pipeline_longcat_image_edit, processor="text_processor"),
    ),
)
