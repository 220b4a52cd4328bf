"""Tiny random checkpoints of the FLUX.1 kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks), CLIP and T5 text encoders of width 32 and 24
with tokenizers of their own, 16-channel VAE with factor 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import BY_SIZE, EULER, Family, Wish, drawn, halves, of_picture, photo, reference_of

FILL, CONTROL = "FluxFillPipeline", "FluxControlPipeline"
SEEN = {FILL: 384, CONTROL: 128}
"""Channels of the tokens of a network that sees more than it draws."""


def transformer(guidance: bool = True, channels: int = 64) -> FluxTransformer2DModel:
    """The network of the reference, small, which sees so many `channels` of a token; still to be drawn."""
    return FluxTransformer2DModel(
        in_channels=channels,
        out_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=encoders.TEXT_WIDTH,
        pooled_projection_dim=encoders.POOLED_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def build(folder: Path, *, schnell: bool = False, seed: int = 0, arch: str = "FluxPipeline") -> Path:
    """Writes the checkpoint into `folder` and returns it.

    The dev kind has a guidance embedding and a dynamic shift; `schnell` has neither. Other pipelines (`arch`) have the
    same components, that which fills in pictures with a transformer that sees them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip, t5 = encoders.clip_tokenizer(), encoders.t5_tokenizer()
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")
    parts.save_module(folder, "transformer", seed, lambda: transformer(not schnell, SEEN.get(arch, 64)))
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.clip_encoder(len(clip)))
    parts.save_module(folder, "text_encoder_2", seed, lambda: encoders.t5_encoder(len(t5)))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    shift = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    components = {
        "feature_extractor": None,
        "image_encoder": None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, arch, components)
    return folder


def kontext_reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What FluxKontextPipeline makes of every wish, in exactly the size that was asked for."""
    pipe = FluxKontextPipeline.from_pretrained(folder, dtype=dtype)
    results = []
    for wish in wishes:
        height, width = wish.params.height, wish.params.width
        assert height and width
        resize = bool(dict(wish.params.extra or {}).get("auto_resize", True))  # type: ignore[call-overload]
        if len(wish.filled) == 1 or not wish.filled:
            results.append(drawn(pipe, wish, output_type, max_area=height * width, _auto_resize=resize))
            continue
        keeping = FluxKontextInpaintPipeline.from_pipe(pipe, torch_dtype=dtype)
        strength = 1.0 if wish.params.strength is None else wish.params.strength
        results.append(drawn(keeping, wish, output_type, _auto_resize=resize, strength=strength))
    return results


def control_reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What FluxControlPipeline makes of every wish, whose picture it calls another name."""
    pipe = FluxControlPipeline.from_pretrained(folder, dtype=dtype)
    return [drawn(pipe, wish, output_type, control_image=wish.image) for wish in wishes]


_reference = reference_of(FluxPipeline, FluxImg2ImgPipeline, FluxInpaintPipeline)
_KONTEXT = replace(of_picture(4, 3.5, 64, 64, 0), max_sequence_length=24, extra={"auto_resize": False})
_FILL = replace(of_picture(4, 30.0, 64, 64, 0), strength=1.0, max_sequence_length=24)
_CONTROL = replace(of_picture(4, 10.0, 64, 64, 0), max_sequence_length=24)
_SCHNELL = DiffusionParams(num_inference_steps=3, height=64, width=64, max_sequence_length=24)

FAMILIES = (
    Family(
        arch="FluxPipeline",
        kind="dev",
        build=build,
        wishes=(
            Wish("a red circle", None, replace(of_picture(4, 3.5, 64, 64, 7), max_sequence_length=24)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                "blurry, grey",
                replace(of_picture(3, 2.0, 96, 64, 8), true_cfg_scale=3.0, max_sequence_length=32),
            ),
            Wish("a star", "", replace(of_picture(5, 5.0, 32, 48, 9), true_cfg_scale=1.5, max_sequence_length=24)),
            Wish(
                "a heart",
                None,
                replace(of_picture(5, 3.0, 64, 48, 11), strength=0.8, max_sequence_length=24),
                photo(50, 70),
                mask=halves(50, 70),
            ),
            Wish(
                "a cross",
                "grey",
                replace(of_picture(6, 3.0, 48, 64, 10), true_cfg_scale=2.0, strength=0.5, max_sequence_length=24),
                photo(50, 70),
            ),
        ),
        reference=_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="FluxPipeline",
        kind="schnell",
        build=partial(build, schnell=True),
        wishes=(
            Wish("a red circle", "grey", replace(_SCHNELL, true_cfg_scale=4.0, seed=7)),
            Wish("two squares and a star", None, replace(_SCHNELL, num_inference_steps=4, height=96, seed=8)),
            Wish("a star", None, replace(_SCHNELL, width=32, true_cfg_scale=1.0, guidance_scale=0.0, seed=9)),
        ),
        reference=_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="FluxKontextPipeline",
        build=partial(build, arch="FluxKontextPipeline"),
        wishes=(
            Wish("make it red", None, replace(_KONTEXT, seed=7), photo(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                "blurry, grey",
                replace(_KONTEXT, num_inference_steps=3, height=96, true_cfg_scale=3.0, guidance_scale=2.0, seed=8),
                photo(40, 100),
            ),
            Wish("a star", "", replace(_KONTEXT, num_inference_steps=5, width=48, true_cfg_scale=1.5, seed=9)),
            Wish(
                "a heart",
                None,
                replace(_KONTEXT, num_inference_steps=5, height=64, width=48, strength=0.8, seed=11),
                photo(50, 70),
                mask=halves(50, 70),
            ),
            Wish(
                "a cross",
                "",
                replace(_KONTEXT, height=80, true_cfg_scale=2.0, seed=10),
                photo(64, 64),
                pad=(0, 0, 0, 20),
            ),
        ),
        reference=kontext_reference,
        unable=EULER,
    ),
    Family(
        arch=FILL,
        build=partial(build, arch=FILL),
        wishes=(
            Wish("a red circle", None, replace(_FILL, seed=7), photo(70, 50), mask=halves(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                None,
                replace(_FILL, num_inference_steps=3, height=96, guidance_scale=2.0, seed=8),
                photo(40, 60),
                pad=(0, 20, 8, 0),
            ),
            Wish(
                "a star",
                None,
                replace(_FILL, num_inference_steps=6, width=48, guidance_scale=5.0, strength=0.6, seed=9),
                photo(64, 90),
                mask=halves(64, 90),
                pad=(10, 0, 0, 0),
            ),
        ),
        reference=reference_of(FluxPipeline, keeping=FluxFillPipeline),
        unable=BY_SIZE,
    ),
    Family(
        arch=CONTROL,
        build=partial(build, arch=CONTROL),
        wishes=(
            Wish("a red circle", None, replace(_CONTROL, seed=7), photo(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                None,
                replace(_CONTROL, num_inference_steps=3, height=96, guidance_scale=2.0, seed=8),
                photo(40, 60),
            ),
            Wish("a star", None, replace(_CONTROL, num_inference_steps=5, width=48, seed=9), photo(64, 90)),
        ),
        reference=control_reference,
        unable=BY_SIZE,
    ),
)
