"""A tiny random checkpoint of the Z-Image kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 96 (3 heads of 32), Qwen3 text encoder of width 64, 16-channel VAE with factor 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline, ZImagePipeline, ZImageTransformer2DModel

from tests.checkpoints import parts
from tests.checkpoints.wishes import EULER, Family, Wish, halves, of_picture, photo, reference_of

TEXT_WIDTH = 64


def transformer(layers: int = 2, latent_channels: int = 16, heads: int = 3) -> ZImageTransformer2DModel:
    """The network of the reference, small, with `heads` of 32; the pad tokens and all else still to be drawn."""
    return ZImageTransformer2DModel(
        in_channels=latent_channels,
        dim=32 * heads,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[1024, 512, 512],
    )


def build(
    folder: Path,
    *,
    turbo: bool = False,
    seed: int = 0,
    latent_channels: int = 16,
    layers: int = 2,
    scheduler: str = "FlowMatchEulerDiscreteScheduler",
    scheduler_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the checkpoint into `folder` and returns it.

    `turbo` keeps the shift of 3 that the distilled checkpoint has (6 otherwise); `scheduler` and `scheduler_config`
    choose another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    vocabulary = len(tokenizer)
    parts.save_module(folder, "transformer", seed, lambda: transformer(layers, latent_channels))
    parts.save_module(folder, "text_encoder", seed, lambda: parts.qwen3_encoder(vocabulary, TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, lambda: parts.kl_autoencoder(latent_channels))
    default = {"shift": 3.0 if turbo else 6.0} if scheduler.startswith("FlowMatch") else {}
    parts.write_scheduler(folder, scheduler, default if scheduler_config is None else scheduler_config)
    components = {
        "scheduler": ("diffusers", scheduler),
        "text_encoder": ("transformers", "Qwen3Model"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "transformer": ("diffusers", "ZImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "ZImagePipeline", components)
    return folder


FAMILIES = (
    Family(
        arch="ZImagePipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", of_picture(4, 4.0, 64, 64, 7)),
            Wish("two squares and a long story about them " * 6, None, of_picture(3, 0.0, 96, 64, 8)),
            Wish("a star", None, of_picture(5, 5.0, 32, 48, 9, cfg_normalization=0.9, cfg_truncation=0.6)),
            Wish(
                "a heart",
                None,
                replace(of_picture(5, 2.0, 64, 48, 11), strength=0.8),
                photo(50, 70),
                mask=halves(50, 70),
            ),
            Wish("a cross", "grey", replace(of_picture(5, 2.0, 48, 64, 10), strength=0.7), photo(64, 48)),
        ),
        reference=reference_of(ZImagePipeline, ZImageImg2ImgPipeline, ZImageInpaintPipeline),
        unable=EULER,
    ),
)
