"""A tiny random checkpoint of the Qwen-Image-Layered kind, as diffusers saves it, and what the reference makes of it.

The networks are those of `qwen_image.py`, with positions in layers and pixels of four channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from omnimuse.models.qwen_image.pipeline import AFTER, BEFORE
from tests.checkpoints import parts, qwen_image, seeing
from tests.checkpoints.wishes import EULER, Family, Wish, drawn, of_true_guidance, photo


def transformer() -> QwenImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return qwen_image.transformer(use_layer3d_rope=True, use_additional_t_cond=True)


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = seeing.tokenizer([BEFORE, AFTER])
    seeing_parts = seeing.save(folder, seed, words, qwen_image.TEXT_WIDTH, "processor")
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, lambda: qwen_image.vae(channels=4))
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", qwen_image.SHIFT)
    components = {
        **seeing_parts,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "transformer": ("diffusers", "QwenImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLQwenImage"),
    }
    parts.write_index(folder, "QwenImageLayeredPipeline", components)
    return folder


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish, in the size that was asked for: layers [L, 4, H, W], or latents
    [C, F, h, w], which it cannot give by itself.
    """
    module = pipeline_qwenimage_layered
    pipe = module.QwenImageLayeredPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=dtype),
        transformer=QwenImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        **seeing.corrected(folder, "processor", dtype),
    )
    results = []
    for wish in qwen_image.guided(wishes):
        size, left = (wish.params.width, wish.params.height), list[Tensor]()

        def see(pipe: Any, step: int, time: Any, given: dict[str, Tensor], left: list[Tensor] = left) -> Any:
            left[:] = [given["latents"]]
            return given

        assert wish.image is not None
        clear = {"image": wish.image.convert("RGBA"), "callback_on_step_end": see}
        with seeing.sized(module, wish):
            layers = drawn(pipe, wish, "pt", **clear)
        if output_type == "latent":
            layers = pipe._unpack_latents(left[0], size[1], size[0], len(layers), pipe.vae_scale_factor)[0]
        results.append(layers)
    return results


def layered(scale: float, steps: int, height: int, width: int, seed: int, **extra: int) -> DiffusionParams:
    """Parameters with choices of layers."""
    return replace(of_true_guidance(scale, steps, height, width, seed), extra=extra)


FAMILIES = (
    Family(
        arch="QwenImageLayeredPipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", layered(4.0, 4, 64, 64, 7, layers=2), photo(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 9,
                None,
                layered(2.5, 3, 96, 64, 8, layers=3, cfg_normalize=True),
                photo(40, 100),
            ),
            Wish("a star", None, layered(1.0, 5, 32, 48, 9, layers=9), photo(130, 65)),
        ),
        reference=reference,
        least_steps=2,
        unable=EULER,
        lent=partial(seeing.lent, module=pipeline_qwenimage_layered, processor="processor"),
    ),
)
