"""A tiny random checkpoint of the Bria kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks), T5 encoder, 16-channel VAE with factor 8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import BriaPipeline, BriaTransformer2DModel

from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, of_picture, reference_of

TEXT_WIDTH = 24


def transformer() -> BriaTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return BriaTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = encoders.t5_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "transformer", seed, transformer)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.t5_encoder(len(tokenizer)))
    components: dict[str, tuple[str, str] | None] = {
        "transformer": ("diffusers", "BriaTransformer2DModel"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "image_encoder": None,
        "feature_extractor": None,
    }
    parts.write_index(folder, "BriaPipeline", components)
    return folder


FAMILIES = (
    Family(
        arch="BriaPipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", replace(of_picture(4, 4.0, 64, 64, 7), max_sequence_length=24)),
            Wish("two squares " * 20, None, replace(of_picture(3, 1.0, 96, 64, 8), max_sequence_length=32)),
            Wish("a star", None, replace(of_picture(5, 5.0, 32, 48, 9), max_sequence_length=24)),  # guided by zeros
        ),
        reference=reference_of(BriaPipeline),
        unable=EULER,
    ),
)
