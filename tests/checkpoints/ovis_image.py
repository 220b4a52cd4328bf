"""A tiny random checkpoint of the Ovis-Image kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks), Qwen3 text encoder of width 64, 16-channel
VAE with factor 8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

from omnimuse.models.ovis_image.pipeline import SYSTEM
from tests.checkpoints import parts
from tests.checkpoints.wishes import BY_SIZE, Family, Wish, of_picture, reference_of

TEXT_WIDTH = 64


def transformer() -> OvisImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return OvisImageTransformer2DModel(
        in_channels=64,
        out_channels=64,
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
    tokenizer = parts.qwen_tokenizer(texts=[SYSTEM])
    tokenizer.save_pretrained(folder / "tokenizer")
    vocabulary = len(tokenizer)
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "text_encoder", seed, lambda: parts.qwen3_encoder(vocabulary, TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen3Model"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "transformer": ("diffusers", "OvisImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "OvisImagePipeline", components)
    return folder


FAMILIES = (
    Family(
        arch="OvisImagePipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", replace(of_picture(4, 4.0, 64, 64, 7), max_sequence_length=24)),
            Wish(
                "two squares and a long story " * 9,
                None,
                replace(of_picture(3, 1.0, 96, 64, 8), max_sequence_length=32),
            ),
            Wish("a star", None, replace(of_picture(5, 5.0, 32, 48, 9), max_sequence_length=24)),
        ),
        reference=reference_of(OvisImagePipeline),
        unable=BY_SIZE,
    ),
)
