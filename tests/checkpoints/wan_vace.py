"""A tiny random checkpoint of Wan VACE, in the layout that diffusers saves, and what the reference makes of it.

Everything as Wan's, but for the transformers: three blocks, and hints behind the first and the last. There are two
experts, as in 2.2; `build(folder, experts=False)` writes one network, as in 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanVACEPipeline, WanVACETransformer3DModel
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts, wan
from tests.checkpoints.wishes import Family, Wish, film, halves, of_picture, photo


def transformer() -> WanVACETransformer3DModel:
    """The network of the reference, small; still to be drawn."""
    return WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=wan.TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=64,
        vace_layers=[0, 2],
        vace_in_channels=96,
    )


def build(folder: Path, seed: int = 0, *, experts: bool = True) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = encoders.t5_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    networks = ("transformer", "transformer_2") if experts else ("transformer",)
    for name in networks:
        parts.save_module(folder, name, seed, transformer)
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.umt5_encoder(len(tokenizer)))
    parts.save_module(folder, "vae", seed, wan.vae)
    shift = wan.FLOW_SHIFT["A14B" if experts else "2.1"]
    solver = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    parts.write_scheduler(folder, "UniPCMultistepScheduler", solver)
    components: dict[str, tuple[str, str] | None] = {
        "scheduler": ("diffusers", "UniPCMultistepScheduler"),
        "text_encoder": ("transformers", "UMT5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "transformer_2": None,
        "vae": ("diffusers", "AutoencoderKLWan"),
        **dict.fromkeys(networks, ("diffusers", "WanVACETransformer3DModel")),
    }
    parts.write_index(folder, "WanVACEPipeline", components, {"boundary_ratio": 0.875 if experts else None})
    return folder


def call(pipe: Any, wish: Wish, output_type: str) -> Tensor:
    """What the reference makes of a wish: frames [F, 3, H, W], or latents [C, f, h, w] without those of pictures."""
    params, shown = wish.params, list(wish.others)
    video, one = list(wish.video[: params.num_frames]), wish.mask
    masks = list(wish.masks[: params.num_frames]) if one is None else [one] * len(video)
    extra = params.extra if isinstance(params.extra, dict) else {}
    made = pipe(
        **wan.read(pipe, wish),
        **extra,
        video=video or None,
        mask=[mask.convert("RGB") for mask in masks] or None,
        reference_images=shown or None,
        height=params.height,
        width=params.width,
        num_frames=params.num_frames,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        guidance_scale_2=params.guidance_scale_2,
        generator=torch.Generator().manual_seed(params.seed or 0),
        output_type=output_type,
    ).frames[0]
    return made[:, len(shown) :] if output_type == "latent" else made


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pipe = WanVACEPipeline.from_pretrained(folder, torch_dtype=dtype, vae=vae)
    pipe.set_progress_bar_config(disable=True)
    return [call(pipe, wish, output_type) for wish in wishes]


def _clip(
    steps: int, guidance: float, frames: int, height: int, width: int, seed: int, **extra: float
) -> DiffusionParams:
    params = of_picture(steps, guidance, height, width, seed, **extra)
    return replace(params, num_frames=frames, max_sequence_length=32)


MOVING = tuple(halves(96, 64).rotate(20 * turn) for turn in range(13))
"""A mask that is another one for every frame."""

FAMILIES = (
    Family(
        arch="WanVACEPipeline",
        build=build,
        wishes=(
            Wish(
                "two green stars",
                "grey",
                replace(_clip(4, 4.0, 5, 32, 48, 7), guidance_scale_2=2.0),
                video=film(96, 64, 13),
                masks=MOVING,
                others=(photo(70, 50),),
            ),
            Wish(
                "a story about Them: it goes on " * 8,
                None,
                _clip(3, 1.0, 9, 32, 32, 8, conditioning_scale=0.7),
                others=(photo(31, 64), photo(40, 40)),
            ),
            Wish("a star", None, _clip(5, 6.0, 5, 48, 32, 9), video=film(64, 96, 13), mask=halves(64, 96)),
            Wish("a star", "grey", _clip(3, 3.0, 1, 32, 32, 10)),
        ),
        reference=reference,
        apart="no pipeline beside WanVACEPipeline that starts from a picture",
    ),
)
