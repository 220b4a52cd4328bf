"""A tiny random checkpoint of the Chroma kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks) with a modulator of width 48, T5 text encoder
of width 24, 16-channel VAE with factor 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ChromaImg2ImgPipeline, ChromaInpaintPipeline, ChromaPipeline, ChromaTransformer2DModel
from torch import Tensor

from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, halves, of_picture, photo, reference_of

LONG = "Two squares, and a long story about them. " * 12


def transformer() -> ChromaTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return ChromaTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=encoders.TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=64,
        approximator_hidden_dim=48,
        approximator_layers=2,
    )


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    t5 = encoders.t5_tokenizer()
    t5.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.t5_encoder(len(t5)))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
    components = {
        "feature_extractor": None,
        "image_encoder": None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "ChromaTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "ChromaPipeline", components)
    return folder


def corrected(kind: Any) -> Any:
    """A reference with the mask that it means (huggingface/diffusers#12116): its mask of ones and zeros is of floats,
    which attention adds to the scores, and so hides no pad; one of bools does. That which draws a part of a picture
    anew asks its network for an option of FLUX.1's, which is told that it has not.
    """

    class Corrected(kind):  # type: ignore[misc]
        def check_inputs(self, *args: Any, **kwargs: Any) -> None:
            self.transformer.register_to_config(guidance_embeds=False)
            super().check_inputs(*args, **kwargs)

        def _prepare_attention_mask(self, *args: Any, **kwargs: Any) -> Tensor | None:
            mask = super()._prepare_attention_mask(*args, **kwargs)
            return None if mask is None else mask.to(torch.bool)

    return Corrected


def _wish(
    prompt: str, negative: str | None, sizes: Sequence[int], guidance: float, seed: int, limit: int, **given: Any
) -> Wish:
    (steps, height, width), strength = sizes, given.pop("strength", None)
    params = replace(of_picture(steps, guidance, height, width, seed), max_sequence_length=limit, strength=strength)
    return Wish(prompt, negative, params, **given)


FAMILIES = (
    Family(
        arch="ChromaPipeline",
        build=build,
        wishes=(
            _wish(LONG, "Grey, and a long story about it. " * 12, (4, 64, 64), 4.0, 7, 24),  # without any pad
            _wish("a red circle", None, (3, 96, 64), 1.0, 8, 32),
            _wish("a star", None, (5, 32, 48), 5.0, 9, 24),
            _wish("a heart", "blurry, grey", (4, 48, 64), 3.0, 10, 16),
            _wish("a cross", "grey", (6, 48, 64), 3.0, 11, 24, image=photo(50, 70), strength=0.5),
            _wish("a moon", "", (5, 64, 48), 2.0, 12, 24, image=photo(50, 70), mask=halves(50, 70), strength=0.8),
        ),
        reference=reference_of(*map(corrected, (ChromaPipeline, ChromaImg2ImgPipeline, ChromaInpaintPipeline))),
        unable=EULER,
    ),
)
