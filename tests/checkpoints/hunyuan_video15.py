"""Tiny random checkpoints of the HunyuanVideo-1.5 kinds, in the layout that diffusers saves, and their reference.

Transformer of width 32 (2 heads of 16, two blocks, one that refines the text), Qwen2.5-VL's language model of width 32,
ByT5 of width 24, autoencoder of 32 channels with factor 16 in space and 4 in time, SigLIP of width 16 that sees 4
patches of 14 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from omnimuse.core.params import DiffusionParams
from omnimuse.loader.components import quiet
from omnimuse.models.hunyuan_video15.pipeline import SYSTEM
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, photo

TEXT_WIDTH, IMAGE_WIDTH, IMAGE_SIDE, CHANNELS = 32, 16, 28, 8
LONG = {"width": 448, "height": 32, "num_frames": 5}
"""Three tiles of the autoencoder, each of which is decoded in one step."""
TARGET_SIZE = 64
"""Pictures make videos of so many pixels squared."""


def transformer(kind: str) -> HunyuanVideo15Transformer3DModel:
    """The network of the reference, small; still to be drawn. One of few steps ("i2v-step") is told where they end."""
    return HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_WIDTH,
        text_embed_2_dim=encoders.TEXT_WIDTH,
        image_embed_dim=IMAGE_WIDTH,
        rope_axes_dim=(4, 6, 6),
        target_size=TARGET_SIZE,
        task_type=kind[:3],
        use_meanflow=kind == "i2v-step",
    )


def text_encoder(vocabulary: int) -> Qwen2_5_VLTextModel:
    """As the published one, with four layers: what is read comes from the second."""
    config = Qwen2_5_VLTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]},
    )
    return Qwen2_5_VLTextModel(config)


def image_encoder() -> SiglipVisionModel:
    """As the published one, with less of everything."""
    config = SiglipVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=14,
    )
    return SiglipVisionModel(config)


def vae() -> AutoencoderKLHunyuanVideo15:
    """The published factors."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS, block_out_channels=(16, 16, 16, 16, 16), layers_per_block=1
    )


def build(folder: Path, kind: str = "t2v", *, seed: int = 0, **guider: Any) -> Path:
    """Writes the checkpoint of that kind into `folder` and returns it; `guider` are options of its guider."""
    folder.mkdir(parents=True, exist_ok=True)
    words, letters = parts.qwen_tokenizer(texts=[SYSTEM]), ByT5Tokenizer()
    words.save_pretrained(folder / "tokenizer")
    letters.save_pretrained(folder / "tokenizer_2")
    parts.save_module(folder, "transformer", seed, lambda: transformer(kind))
    parts.save_module(folder, "text_encoder", seed, lambda: text_encoder(len(words)))
    parts.save_module(folder, "text_encoder_2", seed, lambda: encoders.t5_encoder(len(letters), encoders.TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, vae)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 7.0})
    with quiet("diffusers"):
        ClassifierFreeGuidance(**{"guidance_scale": 6.0, **guider}).save_pretrained(folder / "guider")
    components: dict[str, tuple[str, str] | None] = {
        "guider": ("diffusers", "ClassifierFreeGuidance"),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Qwen2_5_VLTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
        "tokenizer_2": ("transformers", "ByT5Tokenizer"),
        "transformer": ("diffusers", "HunyuanVideo15Transformer3DModel"),
        "vae": ("diffusers", "AutoencoderKLHunyuanVideo15"),
    }
    if kind.startswith("i2v"):
        parts.save_module(folder, "image_encoder", seed, image_encoder)
        side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
        SiglipImageProcessorPil(size=side).save_pretrained(folder / "feature_extractor")
        components["image_encoder"] = ("transformers", "SiglipVisionModel")
        components["feature_extractor"] = ("transformers", "SiglipImageProcessor")
    arch = "HunyuanVideo15ImageToVideoPipeline" if kind.startswith("i2v") else "HunyuanVideo15Pipeline"
    parts.write_index(folder, arch, components)
    return folder


def call(pipe: Any, wish: Wish, output_type: str) -> Tensor:
    """What a reference pipeline makes of a wish: frames [F, 3, H, W], or latents [C, f, h, w].

    Its guider has the scale; of a picture it finds the size itself.
    """
    p = wish.params
    size = {"height": p.height, "width": p.width} if wish.image is None else {"image": wish.image}
    with quiet("diffusers"):
        pipe.guider = pipe.guider.new(guidance_scale=p.guidance_scale)
    return pipe(
        prompt=wish.prompt,
        negative_prompt=wish.negative,
        **size,
        num_frames=p.num_frames,
        num_inference_steps=p.num_inference_steps,
        generator=torch.Generator().manual_seed(p.seed or 0),
        output_type=output_type,
    ).frames[0]


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish."""
    pictures = (folder / "image_encoder").exists()
    with quiet("diffusers"), quiet("transformers"):
        kind = HunyuanVideo15ImageToVideoPipeline if pictures else HunyuanVideo15Pipeline
        pipe = kind.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return [call(pipe, wish, output_type) for wish in wishes]


def clip(steps: int, guidance: float, frames: int, height: int | None, width: int | None, seed: int) -> DiffusionParams:
    """Parameters of a video."""
    params = DiffusionParams(num_inference_steps=steps, guidance_scale=guidance, num_frames=frames, seed=seed)
    return DiffusionParams(height=height, width=width).over(params)


FAMILIES = (
    Family(
        arch="HunyuanVideo15Pipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", clip(4, 4.0, 5, 32, 48, 7)),
            Wish('a story about "Them": it goes on and “on” ' * 6, None, clip(3, 1.0, 1, 48, 48, 8)),
            Wish("", None, clip(5, 6.0, 9, 32, 32, 9)),
            Wish('two stars that say "two", twice: "two"', 'a "circle"', clip(4, 3.0, 9, 64, 16, 10)),
        ),
        reference=reference,
        unable=EULER,
        long=LONG,
        apart="pads in its blocks, which cannot be compared yet",
    ),
    Family(
        arch="HunyuanVideo15Pipeline",
        kind="i2v",
        build=partial(build, kind="i2v"),
        wishes=(
            Wish("a red circle", "blurry, grey", clip(4, 4.0, 5, None, None, 7), photo(70, 50)),
            Wish('a story about "Them": it goes on ' * 6, None, clip(3, 1.0, 9, None, None, 8), photo(31, 90)),
            Wish("a star", None, clip(5, 6.0, 5, None, None, 9), photo(33, 33)),
        ),
        reference=reference,
        unable=EULER,
        long=LONG,
        apart="pads in its blocks, which cannot be compared yet",
    ),
)
