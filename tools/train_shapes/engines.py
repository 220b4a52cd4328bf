"""Picture makers for the grader: omnimuse, diffusers, and the model's autoencoder alone.

Each returns a callable from prompts and seeds to pictures of 128x128.  Engines are imported inside the
functions, so that the grader itself needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tools.train_shapes.data import SIZE

Generate = Callable[[list[str], list[int]], list[Image.Image]]


@dataclass(frozen=True)
class Settings:
    """How to generate; ``guidance`` is c + g * (c - u), ``dtype`` a torch name (diffusers and vae only), ``quantize``
    how weights are packed (omnimuse only)."""

    steps: int = 10
    guidance: float = 2.0
    batch: int = 25
    dtype: str = "float32"
    quantize: str = ""


def omnimuse(path: str, settings: Settings) -> Generate:
    """The engine's public API."""

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        from omnimuse import DiffusionParams, Omni

        same = DiffusionParams(settings.steps, settings.guidance, width=SIZE, height=SIZE)
        results = Omni(path, quantize=settings.quantize).generate(prompts, [replace(same, seed=seed) for seed in seeds])
        return [result.images[0] for result in results]

    return generate


def diffusers(path: str, settings: Settings) -> Generate:
    """diffusers' own ZImagePipeline, each picture from a generator of its seed."""

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        import torch
        from diffusers import ZImagePipeline

        pipeline = ZImagePipeline.from_pretrained(path, torch_dtype=getattr(torch, settings.dtype))
        pipeline.set_progress_bar_config(disable=True)
        pictures = []
        for start in range(0, len(prompts), settings.batch):
            part = slice(start, start + settings.batch)
            pictures += pipeline(
                list(prompts[part]),
                height=SIZE,
                width=SIZE,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
                max_sequence_length=128,
            ).images
        return pictures

    return generate


def reconstruct(path: str, pictures: list[Image.Image], settings: Settings) -> list[Image.Image]:
    """``pictures`` through the autoencoder in ``path``/vae and back, by the mean latent."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(path, subfolder="vae", torch_dtype=getattr(torch, settings.dtype))
    found = []
    for start in range(0, len(pictures), settings.batch):
        batch = np.stack([np.asarray(picture) for picture in pictures[start : start + settings.batch]])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).to(vae.dtype) / 127.5 - 1
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample.float()
        y = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        found += [Image.fromarray(row) for row in y]
    return found
