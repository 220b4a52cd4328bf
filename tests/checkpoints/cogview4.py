"""A tiny random checkpoint of CogView4, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two blocks), GLM of width 32 (two heads, half of each of which turns, and one
that they share keys of; three layers), 16-channel VAE with factor 8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel
from transformers import GlmModel

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, of_picture, reference_of

TEXT_WIDTH = 32
MARKS = ("[gMASK]", "<sop>")
"""What every text begins with."""


def transformer() -> CogView4Transformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return CogView4Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=24,
        condition_dim=8,
    )


def vae() -> AutoencoderKL:
    """As published: latents are neither scaled nor shifted."""
    made = parts.kl_autoencoder()
    made.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    return made


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = encoders.bpe_tokenizer(MARKS)
    tokenizer.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.language_model(GlmModel, tokenizer, TEXT_WIDTH))
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, vae)
    shift = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "GlmModel"),
        "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
        "transformer": ("diffusers", "CogView4Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "CogView4Pipeline", components)
    return folder


def _asked(params: DiffusionParams, tokens: int, **extra: object) -> DiffusionParams:
    return replace(params, max_sequence_length=tokens, extra=extra)


FAMILIES = (
    Family(
        arch="CogView4Pipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", _asked(of_picture(4, 4.0, 64, 64, 7), 64)),
            Wish("two squares and a long story about them " * 4, None, _asked(of_picture(3, 1.0, 96, 64, 8), 24)),
            Wish(
                "a star",
                None,
                _asked(of_picture(5, 5.0, 32, 48, 9), 64, original_size=(80, 112), crops_coords_top_left=(16, 8)),
            ),
        ),
        reference=reference_of(CogView4Pipeline),
        unable=EULER,
    ),
)
