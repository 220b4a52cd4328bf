"""A tiny random Stable Audio checkpoint, in the layout that diffusers saves, and what the reference makes of it.

A transformer of width 32 (4 heads of 8, two of keys and values, two blocks) over 400 latents of 8 samples, 1000 of
them a second: 3.2 seconds in stereo. A T5 text encoder, whose features are projected.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import Family, Wish, chord

RATE, LATENTS, HOP, WIDTH = 1000, 400, 8, 16


def transformer() -> diffusers.StableAudioDiTModel:
    """The network of the reference, small; still to be drawn."""
    return diffusers.StableAudioDiTModel(
        sample_size=LATENTS,
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_dim=24,
        time_proj_dim=8,
        global_states_input_dim=2 * WIDTH,
        cross_attention_input_dim=WIDTH,
    )


def vae(ratios: Sequence[int] = (2, 4)) -> diffusers.AutoencoderOobleck:
    """The autoencoder of the reference, small; the latents are as wide as half of what its encoder gives."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=list(ratios),
        channel_multiples=[2**level for level in range(len(ratios))],
        decoder_channels=8,
        decoder_input_channels=8,
        sampling_rate=RATE,
    )


def projection(text: int = encoders.TEXT_WIDTH) -> StableAudioProjectionModel:
    """Features of `text` to WIDTH, seconds up to 4."""
    return StableAudioProjectionModel(text, WIDTH, 0, 4)


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = encoders.t5_tokenizer(32)
    tokenizer.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "projection_model", seed, projection)
    parts.save_module(folder, "text_encoder", seed, lambda: encoders.t5_encoder(len(tokenizer), encoders.TEXT_WIDTH))
    parts.save_module(folder, "vae", seed, vae)
    _calm(folder / "vae" / "diffusion_pytorch_model.safetensors")
    parts.write_scheduler(folder, "CosineDPMSolverMultistepScheduler", {})
    components: dict[str, tuple[str, str] | None] = {
        "projection_model": ("stable_audio", "StableAudioProjectionModel"),
        "scheduler": ("diffusers", "CosineDPMSolverMultistepScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "StableAudioDiTModel"),
        "vae": ("diffusers", "AutoencoderOobleck"),
    }
    parts.write_index(folder, "StableAudioPipeline", components)
    return folder


def _calm(file: Path) -> None:
    """Makes the decoder's last layer so small that sounds stay within [-1, 1], as files have them."""
    tensors = load_file(file)
    tensors["decoder.conv2.weight_g"] *= 0.01
    save_file(tensors, file, {"format": "pt"})


def pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The reference pipeline over the checkpoint in `folder`."""
    pipe = diffusers.StableAudioPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish: a waveform [c, n], or latents [C, L]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the noise at the last step
        pipe = pipeline(folder, dtype)
        return [_made(pipe, wish, output_type) for wish in wishes]


def _made(pipe: Any, wish: Wish, output_type: str) -> Tensor:
    p, extra = wish.params, dict(wish.params.extra or {})  # type: ignore[call-overload]
    start, seconds = extra.get("start", 0.0), LATENTS * HOP / RATE if p.seconds is None else p.seconds
    pipe.tokenizer.model_max_length = p.max_sequence_length or 32
    sound: dict[str, Any] = {}
    if wish.sound is not None:
        assert p.strength == 1.0, "the reference always takes every step"
        samples = torch.frombuffer(bytearray(wish.sound.pcm), dtype=torch.int16).view(-1, wish.sound.channels)
        sound["initial_audio_waveforms"] = (samples.t().float() / 32767)[None].to(pipe.dtype)
        sound["initial_audio_sampling_rate"] = wish.sound.rate
    made = pipe(
        wish.prompt,
        negative_prompt=wish.negative,
        audio_start_in_s=start,
        audio_end_in_s=start + seconds,
        num_inference_steps=p.num_inference_steps,
        guidance_scale=p.guidance_scale,
        generator=torch.Generator().manual_seed(p.seed or 0),
        output_type=output_type,
        **sound,
    )
    return made.audios[0]


def _sound(steps: int, guidance: float, seconds: float, seed: int, **extra: float) -> DiffusionParams:
    return DiffusionParams(
        num_inference_steps=steps, guidance_scale=guidance, seconds=seconds, seed=seed, extra=extra or None
    )


FAMILIES = (
    Family(
        arch="StableAudioPipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", _sound(4, 4.0, 2.4, 7)),
            Wish("two green stars above the heart", None, _sound(3, 7.0, 1.0, 8, start=0.2643)),
            Wish("a story about Them: it goes on and on " * 4, None, _sound(5, 1.0, 3.12, 9)),
            Wish("a star", "", replace(_sound(6, 3.0, 0.16, 10, start=2.4), max_sequence_length=20)),
            Wish("a cross", "grey", replace(_sound(4, 2.0, 0.4, 11), strength=1.0), sound=chord(1000, 1.6, 2)),
        ),
        reference=reference,
        sounds=True,
    ),
)
