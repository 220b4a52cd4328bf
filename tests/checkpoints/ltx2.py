"""A tiny random LTX-2 checkpoint, in the layout that diffusers saves, and what the reference makes.

Transformer of widths 32 and 16 (2 heads each, two blocks), Gemma 3 of width 24 with two layers, connectors with 8
registers, autoencoders of 8 to 32 channels, a vocoder that makes 16 samples of a band's frame, 1600 a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import Tensor
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from omnimuse.core.params import DiffusionParams
from omnimuse.loader.components import quiet
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, photo

WIDTH, LAYERS, CHANNELS, REGISTERS = 24, 2, 8, 8
SOUND_CHANNELS, BANDS, RATE = 2, 16, 1600
LONG = {"width": 1376, "height": 64, "num_frames": 17}
"""Four tiles of the autoencoder, each of which is decoded in one step."""
SHIFT = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}


def transformer(rope_type: str) -> LTX2VideoTransformer3DModel:
    """The network of the reference, small; still to be drawn."""
    return LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=SOUND_CHANNELS * BANDS // 4,
        audio_out_channels=SOUND_CHANNELS * BANDS // 4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        audio_sampling_rate=RATE,
        audio_hop_length=16,
        num_layers=2,
        caption_channels=WIDTH,
        rope_type=rope_type,
    )


def connectors(rope_type: str) -> LTX2TextConnectors:
    """From all hidden states of the text encoder to two texts."""
    heads = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2, "num_layers": 1}
    each = {"num_learnable_registers": REGISTERS, **heads}
    both = {f"{part}_connector_{name}": value for part in ("video", "audio") for name, value in each.items()}
    return LTX2TextConnectors(caption_channels=WIDTH, text_proj_in_factor=LAYERS + 1, rope_type=rope_type, **both)


def text_encoder(vocabulary: int) -> Gemma3ForConditionalGeneration:
    """A language model of the Gemma 3 kind, which could also see."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "max_position_embeddings": 2048,
        "sliding_window": 64,
        "query_pre_attn_scalar": 12,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


def vae() -> AutoencoderKLLTX2Video:
    """The published factors: 32 in space, 8 in time."""
    return AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8, 16, 32, 64),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )


def audio_vae() -> AutoencoderKLLTX2Audio:
    """Bands of a sound, four times shorter and lower."""
    return AutoencoderKLLTX2Audio(
        base_channels=SOUND_CHANNELS * BANDS // 4,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        latent_channels=SOUND_CHANNELS,
        sample_rate=RATE,
        mel_hop_length=16,
        mel_bins=BANDS,
    )


def vocoder() -> LTX2Vocoder:
    """From bands to samples."""
    return LTX2Vocoder(
        in_channels=2 * BANDS,
        hidden_channels=16,
        upsample_kernel_sizes=[8, 4],
        upsample_factors=[4, 4],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=RATE,
    )


def build(folder: Path, rope_type: str = "split", *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = encoders.gemma_tokenizer()
    words.save_pretrained(folder / "tokenizer")
    made = {
        "transformer": partial(transformer, rope_type),
        "connectors": partial(connectors, rope_type),
        "text_encoder": partial(text_encoder, len(words)),
        "vae": vae,
        "audio_vae": audio_vae,
        "vocoder": vocoder,
    }
    for name, make in made.items():
        parts.save_module(folder, name, seed, make)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", SHIFT)
    components: dict[str, tuple[str, str] | None] = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Gemma3ForConditionalGeneration"),
        "tokenizer": ("transformers", "GemmaTokenizer"),
        "transformer": ("diffusers", "LTX2VideoTransformer3DModel"),
        "vae": ("diffusers", "AutoencoderKLLTX2Video"),
        "audio_vae": ("diffusers", "AutoencoderKLLTX2Audio"),
        "connectors": ("ltx2", "LTX2TextConnectors"),
        "vocoder": ("ltx2", "LTX2Vocoder"),
        **dict.fromkeys(("processor", "prompt_enhancer", "duration_head")),
    }
    parts.write_index(folder, "LTX2Pipeline", components)
    return folder


def both(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """What the reference makes of every wish: frames [F, 3, H, W] and sound [channels, samples], or latents, [c, f, h,
    w] and [a, l, m], in the scale in which they were denoised.
    """
    with quiet("diffusers"), quiet("transformers"):
        pipe: Any = LTX2Pipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for wish in wishes:
        p = wish.params
        extra = dict(p.extra or {})  # type: ignore[call-overload]
        called = pipe if wish.image is None else LTX2ImageToVideoPipeline(**pipe.components)
        called.set_progress_bar_config(disable=True)
        video, sound = called(
            **({} if wish.image is None else {"image": wish.image}),
            prompt=wish.prompt,
            negative_prompt=wish.negative,
            height=p.height,
            width=p.width,
            num_frames=p.num_frames,
            frame_rate=p.fps,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=p.guidance_scale,
            stg_scale=0.0,
            audio_stg_scale=0.0,
            generator=torch.Generator().manual_seed(p.seed or 0),
            output_type=output_type,
            max_sequence_length=p.max_sequence_length,
            return_dict=False,
            **extra,
        )
        if output_type == "latent":
            factor = pipe.vae.config.scaling_factor
            video = pipe._normalize_latents(video, pipe.vae.latents_mean, pipe.vae.latents_std, factor)
            tokens = pipe._pack_audio_latents(sound)
            tokens = pipe._normalize_audio_latents(tokens, pipe.audio_vae.latents_mean, pipe.audio_vae.latents_std)
            sound = pipe._unpack_audio_latents(tokens, sound.shape[2], sound.shape[3])
        results.append((video[0], sound[0].float()))
    return results


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The videos."""
    return [video for video, _ in both(folder, wishes, output_type, dtype)]


def clip(steps: int, guidance: float, frames: int, size: tuple[int, int], seed: int, **extra: float) -> DiffusionParams:
    """Parameters of a video of `size` (width, height) with sound."""
    return DiffusionParams(
        num_inference_steps=steps,
        guidance_scale=guidance,
        num_frames=frames,
        width=size[0],
        height=size[1],
        seed=seed,
        fps=24.0,
        max_sequence_length=32,
        extra=extra or None,
    )


PLAIN = {"modality_scale": 1.0, "audio_modality_scale": 1.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0}
WISHES = (
    Wish("a red circle", "blurry, grey", clip(4, 4.0, 9, (64, 96), 7)),
    Wish("a story about them. it goes on and on " * 3, None, replace(clip(3, 3.0, 17, (64, 64), 8, **PLAIN), fps=12.0)),
    Wish("a star", None, replace(clip(5, 1.0, 9, (96, 64), 9, audio_guidance_scale=1.0), max_sequence_length=64)),
    Wish("", "grey", clip(4, 2.5, 1, (64, 64), 10, guidance_rescale=0.2, audio_guidance_scale=5.0, modality_scale=1.0)),
)
BEGUN = Wish("a star", "grey", clip(4, 3.0, 9, (64, 96), 11), photo(50, 71))
FAMILIES = (
    Family(
        arch="LTX2Pipeline",
        build=build,
        wishes=(*WISHES, BEGUN),
        reference=reference,
        least_steps=2,
        unable=EULER,
        long=LONG,
        apart="makes video and audio at once, which cannot be compared yet",
    ),
    Family(
        arch="LTX2Pipeline",
        kind="interleaved",
        build=partial(build, rope_type="interleaved"),
        wishes=(*WISHES[:3], BEGUN),
        reference=reference,
        least_steps=2,
        unable=EULER,
        long=LONG,
        apart="makes video and audio at once, which cannot be compared yet",
    ),
)
