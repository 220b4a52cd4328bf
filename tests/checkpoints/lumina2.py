"""Tiny random checkpoints of Lumina-Image 2.0, in the layout that diffusers saves: `build(folder)`.

Transformer of width 48 (4 heads of 12, of which two share keys; one refiner of either kind and two blocks), Gemma 2 of
width 24, 8-channel VAE with factor 8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, of_picture, reference_of


def transformer() -> Lumina2Transformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=8,
        hidden_size=48,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        ffn_dim_multiplier=0.7,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=encoders.TEXT_WIDTH,
    )


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    encoders.gemma_tokenizer().save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, encoders.gemma2_encoder)
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, lambda: parts.kl_autoencoder(8))
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 6.0})
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Gemma2Model"),
        "tokenizer": ("transformers", "GemmaTokenizerFast"),
        "transformer": ("diffusers", "Lumina2Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "Lumina2Pipeline", components)
    return folder


def _asked(params: DiffusionParams, tokens: int, **extra: object) -> DiffusionParams:
    return replace(params, max_sequence_length=tokens, extra=extra)


FAMILIES = (
    Family(
        arch="Lumina2Pipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", _asked(of_picture(4, 4.0, 64, 64, 7), 256)),
            Wish(
                "two squares and a long story about them " * 6,
                None,
                _asked(of_picture(3, 1.0, 96, 64, 8), 60, system_prompt="Draw:"),
            ),
            Wish(
                "a star",
                None,
                _asked(of_picture(5, 5.0, 32, 48, 9), 60, cfg_trunc_ratio=0.6, cfg_normalization=False),
            ),
            Wish("a cross", "", _asked(of_picture(6, 3.0, 48, 64, 10), 60, cfg_trunc_ratio=0.34, system_prompt="")),
        ),
        reference=reference_of(Lumina2Pipeline),
        unable=EULER,
    ),
)
