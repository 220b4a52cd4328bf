"""A tiny random checkpoint of Lucy Edit, in the layout that diffusers saves, and what the reference makes of it.

Everything as Wan's 5B, but for the transformer, which sees the latents of a video beside what it draws.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, LucyEditPipeline
from torch import Tensor

from tests.checkpoints import parts, wan
from tests.checkpoints.wishes import Family, Wish, film, of_picture


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    wan.build(folder, "5B", seed=seed)
    parts.save_module(folder, "transformer", seed, lambda: wan.transformer("5B", beside=wan.DEEP_CHANNELS))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "LucyEditPipeline"}))
    return folder


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pipe = LucyEditPipeline.from_pretrained(folder, torch_dtype=dtype, vae=vae)
    pipe.set_progress_bar_config(disable=True)
    return [
        pipe(
            **wan.read(pipe, wish),
            video=list(wish.video[: wish.params.num_frames]),
            height=wish.params.height,
            width=wish.params.width,
            num_frames=wish.params.num_frames,
            num_inference_steps=wish.params.num_inference_steps,
            guidance_scale=wish.params.guidance_scale,
            generator=torch.Generator().manual_seed(wish.params.seed or 0),
            output_type=output_type,
        ).frames[0]
        for wish in wishes
    ]


def _wish(prompt: str, negative: str | None, sizes: Sequence[int], guidance: float, seed: int) -> Wish:
    steps, frames, height, width = sizes
    params = replace(of_picture(steps, guidance, height, width, seed), num_frames=frames, max_sequence_length=32)
    return Wish(prompt, negative, params, video=film(60, 40, 13))


FAMILIES = (
    Family(
        arch="LucyEditPipeline",
        kind="Dev",  # not the one that stands for Wan's network: others of its kinds are
        build=build,
        wishes=(
            _wish("two green stars", "grey", (4, 5, 64, 64), 4.0, 7),
            _wish("a story about Them: it goes on " * 8, None, (3, 1, 64, 96), 1.0, 8),
            _wish("a star", None, (5, 9, 32, 64), 6.0, 9),
        ),
        reference=reference,
        apart=wan.UNREAD,
    ),
)
