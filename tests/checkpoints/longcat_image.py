"""A tiny random checkpoint of the LongCat-Image kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks), Qwen2.5-VL text encoder of width 64,
16-channel VAE with factor 8.
"""

from __future__ import annotations

from pathlib import Path

from diffusers import LongCatImagePipeline, LongCatImageTransformer2DModel

from omnimuse.models.longcat_image.pipeline import AFTER, BEFORE
from tests.checkpoints import parts
from tests.checkpoints.wishes import EULER, Family, Wish, of_picture, reference_of

TEXT_WIDTH = 64


def transformer() -> LongCatImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return LongCatImageTransformer2DModel(
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
    tokenizer = parts.qwen_tokenizer(texts=[BEFORE, AFTER])
    tokenizer.save_pretrained(folder / "tokenizer")
    vocabulary = len(tokenizer)
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "text_encoder", seed, lambda: parts.qwen25_vl(vocabulary, TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "transformer": ("diffusers", "LongCatImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "LongCatImagePipeline", components)
    return folder


FAMILIES = (
    Family(
        arch="LongCatImagePipeline",
        build=build,
        wishes=(
            Wish("a red 'star' that isn't blue", "blurry, grey", of_picture(4, 4.0, 64, 64, 7)),
            Wish("two squares and a long story " * 99, None, of_picture(3, 1.0, 96, 64, 8)),
            Wish("a star", None, of_picture(5, 5.0, 32, 48, 9, cfg_renorm_min=0.9)),
            Wish('a “cross”, "and a heart"', "grey", of_picture(4, 3.0, 48, 32, 10, enable_cfg_renorm=False)),
        ),
        reference=reference_of(LongCatImagePipeline, enable_prompt_rewrite=False),
        unable=EULER,
    ),
)
