"""Stable Audio as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (StableAudioPipeline). Without a negative prompt the other branch has zeros
for text and duration, but not for the duration beside the noise level; with one, even an empty one, it is encoded. A
sound to start from lies under the noise, which is as loud as the first step's; with `strength` below 1, as that of the
first step that is taken.

Letters: C latent channels; L text tokens, D width of the text features, W of the conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.models.stable_audio.spec import SPEC, StableAudioParams, latent_length, sample_rate
from omnimuse.models.stable_audio.transformer import StableAudioInputs, StableAudioStatic, StableAudioTransformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.sound import DecodeAudio, DrawSoundLatents, EncodeSound, preview_of_latents
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches


@dataclass(frozen=True)
class Project(Stage):
    """Writes what the transformer reads: text and duration of each branch [L + 2, W], and the duration alone [2 W]."""

    name: str = "project"
    reads: tuple[str, ...] = ("positive_embeds", "negative_embeds")
    writes: tuple[str, ...] = ("positive_states", "negative_states", "duration")
    uses: tuple[str, ...] = ("projection_model",)
    computed = True

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        projection = ctx.network("projection_model")
        for state in states:
            start, end = moments(state.request)
            read, state["duration"] = projection(state["positive_embeds"], start, end)
            state["positive_states"], nothing = read, torch.zeros_like(read)
            said = state.request.negative_prompt is not None and state["negative_embeds"] is not None
            state["negative_states"] = projection(state["negative_embeds"], start, end)[0] if said else nothing


def moments(request: Request) -> tuple[float, float]:
    """Where the sound begins and ends in the waveform, in seconds."""
    extra = cast(StableAudioParams, request.extra)
    return extra.start, extra.start + (request.params.seconds or 0.0)


def window(configs: Configs, request: Request) -> tuple[int, int]:
    """Its first sample, and the first that does not belong to it."""
    start, end = (int(moment * sample_rate(configs)) for moment in moments(request))
    return start, max(end, start + 1)


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, latents] of the whole waveform, whatever part of it is asked for."""
    return int(configs["transformer"].get("in_channels") or 64), latent_length(configs)


def sound_tokens(configs: Configs, request: Request) -> int:
    """One for every latent, and one before them."""
    return latent_length(configs) + 1


def conditions(ctx: Context, state: State, network: str, branch: str) -> StableAudioStatic:
    """Text and duration of a branch as the network embeds them: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, StableAudioTransformer)
    read = state[f"{branch}_states"].to(transformer.dtype)
    return transformer.prepare(read, state["duration"].to(transformer.dtype))


def inputs(ctx: Context, static: StableAudioStatic, latents: Tensor, timestep: Tensor) -> StableAudioInputs:
    """One row."""
    return StableAudioInputs(latents, timestep, static)


class StableAudio(Pipeline):
    """Text to sound, and sound to sound."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(pad=True, zeroed=True)),
        Project(),
        EncodeSound(latent_length),
        InitLatents(latent_shape),
        DrawSoundLatents(),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=sound_tokens,
            preview=preview_of_latents,
            texts=("states",),
            given=("duration",),
            start="sound_latents",
        ),
        DecodeAudio(window),
    )
    results = MappingProxyType({"audio": "sound"})


PIPELINE = StableAudio
