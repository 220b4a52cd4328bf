"""LTX-2 as a pipeline, from text or a first frame to video with sound: the declaration, and what is really its own.

Source: the reference pipelines of diffusers (LTX2Pipeline, LTX2ImageToVideoPipeline). The latents of both, laid end to
end, are denoised as one. Guidance is of what the latents would be without noise, of video and sound each by itself.

Letters: c f h w channels, frames, height, width of the video's latents; a l m channels, length, bands of the sound's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.models.ltx2.spec import ISOLATED, SPEC, LTX2Params, count_registers, sound_size, video_size
from omnimuse.models.ltx2.start import encode_first, start_noise
from omnimuse.models.ltx2.transformer import LTX2Inputs, LTX2Static, LTX2Transformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.derive import Derive, EncodeGiven
from omnimuse.pipeline.latents import clip_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText
from omnimuse.pipeline.video import DecodeClip, preview_middle_alone

LEAST = 2
"""Latents a side that the decoder of videos needs: it mirrors them at the edges."""


@dataclass(frozen=True)
class ReadText(EncodeText):
    """Takes every hidden state of the text encoder, side by side, and which tokens are no pads: [1, L, *] and [1, L].

    A text is filled up with pads on the left, whatever side its tokenizer has them on.
    """

    text: str = "states"

    def encode(self, ctx: Context, text: str, limit: int) -> tuple[tuple[Tensor, Tensor], TextRead]:
        tokenizer, text = ctx.components[self.tokenizer], text.strip()
        if limit % (registers := count_registers(ctx.configs)):
            near = limit // registers * registers or registers
            raise RequestError(
                f"max_sequence_length={limit} is not a multiple of {registers}; use {near}", "max_sequence_length"
            )
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        count = int(tokens.attention_mask.sum())
        whole = tokenizer(text, return_tensors="pt", verbose=False).input_ids.shape[1] if count == limit else count
        order = tokens.attention_mask[0].argsort(stable=True)  # pads first
        ids, mask = (each[:, order].to(ctx.device) for each in (tokens.input_ids, tokens.attention_mask))
        output = ctx.network(self.encoder)(ids, attention_mask=mask, output_hidden_states=True)
        states = torch.stack(output.hidden_states, dim=-1).flatten(2, 3)
        return (states, mask), self.told(count, whole, limit)


def connected(read: ReadText) -> Derive:
    """What the network reads of a prompt, for video and for sound: [L, D] each; None where it is not needed."""
    [states] = read.writes

    def make(ctx: Context, state: State) -> Sequence[tuple[Tensor, Tensor] | None]:
        if state[states] is None:
            return [None]
        video, sound, _ = ctx.network("connectors")(*state[states], padding_side="left")
        return [(video[0], sound[0])]

    name, reads = f"connect {read.source.replace('_', ' ')}", (read.source, states)
    return Derive(make, name, reads, (f"{read.branch}_texts",), ("connectors",), same=read.key)


def parted(configs: Configs, request: Request, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of both -> [c, f, h, w] and [a, l, m], views."""
    sizes = video_size(configs, request), sound_size(configs, request)
    video, sound = latents.split([prod(size) for size in sizes])
    return video.view(sizes[0]), sound.view(sizes[1])


@dataclass(frozen=True)
class DenoiseBoth(Denoise):
    """The loop for latents of two parts, of which each has its own guidance."""

    def combined(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> Tensor:
        extra, latents, request = cast(LTX2Params, state.request.extra), state["latents"], state.request
        clean = {branch: latents - each.float() * step.sigma for branch, each in predictions.items()}
        parts = {branch: parted(ctx.configs, request, each) for branch, each in clean.items()}
        scale = request.params.guidance_scale or 0.0
        rules = (
            (scale, extra.modality_scale, extra.guidance_rescale),
            (
                extra.audio_guidance_scale or scale,
                extra.audio_modality_scale or extra.modality_scale,
                extra.audio_guidance_rescale or extra.guidance_rescale,
            ),
        )
        guided = [
            guide({branch: part[index] for branch, part in parts.items()}, *rule) for index, rule in enumerate(rules)
        ]
        moved = (latents - torch.cat([each.flatten() for each in guided])) / step.sigma
        if state["first"] is not None:
            parted(ctx.configs, request, moved)[0][:, :1] = 0  # it stays as it was given
        return moved

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        estimate = state.working.get("estimate")
        return None if estimate is None else self.preview(ctx, parted(ctx.configs, state.request, estimate)[0])


def guide(clean: Mapping[str, Tensor], scale: float, modality_scale: float, rescale: float) -> Tensor:
    """One estimate of clean latents from those of all branches: `rescale` of the way to the spread of the first."""
    found = plain = clean[POSITIVE]
    if NEGATIVE in clean:
        found = found + (scale - 1) * (plain - clean[NEGATIVE])
    if ISOLATED in clean:
        found = found + (modality_scale - 1) * (plain - clean[ISOLATED])
    return rescale * (found * (plain.std() / found.std())) + (1 - rescale) * found if rescale else found


def part(ctx: Context, state: State) -> Sequence[Tensor]:
    """Finished latents of both as [c, f, h, w] and [a, l, m]."""
    return parted(ctx.configs, state.request, state["latents"])


def decode_bands(ctx: Context, state: State) -> Sequence[Tensor | None]:
    """The bands of a sound, [1, channels, frames, bands]; None for output "latent"."""
    if state.request.params.output_type == "latent":
        return [None]
    vae: Any = ctx.network("audio_vae")
    latents = state["sound_latents"]
    tokens = latents.transpose(0, 1).flatten(1)  # [l, a m]: statistics are of these
    tokens = tokens * vae.latents_std.to(tokens) + vae.latents_mean.to(tokens)
    scaled = tokens.unflatten(1, (len(latents), -1)).transpose(0, 1)[None]  # [1, a, l, m]
    return [vae.decode(scaled.to(vae.dtype), return_dict=False)[0]]


def sound(ctx: Context, state: State) -> Sequence[Tensor]:
    """What bands sound like: float32 [channels, samples]; the latents themselves where there are none."""
    bands, latents = state["bands"], state["sound_latents"]
    return [latents if bands is None else ctx.network("vocoder")(bands)[0].float()]


def conditions(ctx: Context, state: State, network: str, branch: str) -> LTX2Static:
    """The texts of a branch and the positions: the same at every step."""
    transformer, request = ctx.network(network), state.request
    assert isinstance(transformer, LTX2Transformer) and request.params.fps
    source = POSITIVE if branch == ISOLATED else branch
    sizes = video_size(ctx.configs, request), sound_size(ctx.configs, request)
    static = transformer.prepare(state[f"{source}_texts"], *sizes, request.params.fps, together=branch != ISOLATED)
    return static if state["first"] is None else static.begun()


def inputs(ctx: Context, static: LTX2Static, latents: Tensor, timestep: Tensor) -> LTX2Inputs:
    """One row: time runs from 1000 (noise) to 0."""
    return LTX2Inputs(latents, timestep, static)


READ = (ReadText(), ReadText(branch=NEGATIVE))


class LTX2(Pipeline):
    """Text, and perhaps the first frame, to video with sound."""

    spec = SPEC
    stages = (
        *READ,
        *(connected(read) for read in READ),
        EncodeGiven("first", encode_first, "encode first frame"),
        Derive(start_noise, "init latents", ("first",), ("noise",)),
        DenoiseBoth(
            conditions=conditions,
            inputs=inputs,
            token_count=clip_tokens,  # sound does not move the shift
            preview=partial(preview_middle_alone, least=LEAST),
            spacing="linear64",
            texts=("texts",),
            given=("first",),
        ),
        Derive(part, "part", ("latents",), ("video_latents", "sound_latents")),
        DecodeClip(latents="video_latents", tile=512, stride=448, least=LEAST),
        Derive(decode_bands, "decode bands", ("sound_latents",), ("bands",), uses=("audio_vae",)),
        Derive(sound, "sound", ("bands", "sound_latents"), ("sound",), uses=("vocoder",)),
    )
    results = MappingProxyType({"video": "video", "audio": "sound"})


PIPELINE = LTX2
