"""LTX-2 as a pipeline, from text or a first frame to video with sound: the declaration, and what is really its own.

Source: the reference pipelines of diffusers (LTX2Pipeline, LTX2ImageToVideoPipeline). The latents of both, laid end to
end, are denoised as one. Guidance is of what the latents would be without noise, of video and sound each by itself.

Letters: c f h w channels, frames, height, width of the video's latents; a l m channels, length, bands of the sound's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.models.ltx2.spec import ISOLATED, SPEC, LTX2Params, count_registers, sound_size, video_size
from omnimuse.models.ltx2.start import EncodeFirst, InitBoth
from omnimuse.models.ltx2.transformer import LTX2Inputs, LTX2Static, LTX2Transformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Stage, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import text_of
from omnimuse.pipeline.video import DecodeClip, preview_middle_alone

TEXTS = ("video_text", "sound_text")
LEAST = 2
"""Latents a side that the decoder of videos needs: it mirrors them at the edges."""


@dataclass(frozen=True)
class OfText(Stage):
    """A stage for the prompt of `branch`, whose slots hold None where a request does not need it."""

    branch: str = POSITIVE

    @property
    def source(self) -> str:
        """The field of a request that is read."""
        return "prompt" if self.branch == POSITIVE else "negative_prompt"

    def key(self, ctx: Context, state: State) -> Hashable | None:
        if self.branch not in state.request.branches:
            return "not needed"
        return (self, text_of(ctx, state, self.source), state.request.params.max_sequence_length)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            needed = self.branch in state.request.branches
            made = self.make(ctx, state) if needed else (None,) * len(self.writes)
            for slot, value in zip(self.writes, made, strict=True):
                state[slot] = value

    @abstractmethod
    def make(self, ctx: Context, state: State) -> Sequence[Any]:
        """What the slots hold."""


@dataclass(frozen=True)
class ReadText(OfText):
    """Writes every hidden state of the text encoder, side by side, and which tokens are no pads: [1, L, *] and [1, L].

    A text is filled up with pads on the left, whatever side its tokenizer has them on.
    """

    uses: tuple[str, ...] = ("text_encoder", "tokenizer")
    lendable: ClassVar[bool] = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"read {self.source.replace('_', ' ')}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.source,)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.branch}_states",)

    def make(self, ctx: Context, state: State) -> Sequence[Any]:
        limit = state.request.params.max_sequence_length or ctx.limits.max_sequence_length
        text, tokenizer = text_of(ctx, state, self.source).strip(), ctx.components["tokenizer"]
        if limit % (registers := count_registers(ctx.configs)):
            near = limit // registers * registers or registers
            raise RequestError(
                f"max_sequence_length={limit} is not a multiple of {registers}; use {near}", "max_sequence_length"
            )
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        count = int(tokens.attention_mask.sum())
        whole = tokenizer(text, return_tensors="pt", verbose=False).input_ids.shape[1] if count == limit else count
        why = f"max_sequence_length={limit}" if whole > count else ""
        state.notes[self.name] = TextRead(self.source, "text_encoder", count, whole - count, why)
        order = tokens.attention_mask[0].argsort(stable=True)  # pads first
        ids, mask = (each[:, order].to(ctx.device) for each in (tokens.input_ids, tokens.attention_mask))
        output = ctx.network("text_encoder")(ids, attention_mask=mask, output_hidden_states=True)
        return [(torch.stack(output.hidden_states, dim=-1).flatten(2, 3), mask)]


@dataclass(frozen=True)
class Connect(OfText):
    """Writes what the network reads of a prompt, for video and for sound: [L, D] each."""

    uses: tuple[str, ...] = ("connectors",)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"connect {self.source.replace('_', ' ')}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.source, f"{self.branch}_states")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{self.branch}_{text}" for text in TEXTS)

    def make(self, ctx: Context, state: State) -> Sequence[Any]:
        states, mask = state[f"{self.branch}_states"]
        video, sound, _ = ctx.network("connectors")(states, mask, padding_side="left")
        return video[0], sound[0]


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


@dataclass(frozen=True)
class Part(Stage):
    """From `latents` to `video_latents` [c, f, h, w] and `sound_latents` [a, l, m]."""

    name: str = "part"
    reads: tuple[str, ...] = ("latents",)
    writes: tuple[str, ...] = ("video_latents", "sound_latents")

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            both = parted(ctx.configs, state.request, state["latents"])
            state["video_latents"], state["sound_latents"] = both


@dataclass(frozen=True)
class DecodeBands(Stage):
    """From `sound_latents` to `bands` of a sound, [1, channels, frames, bands]; None for output "latent"."""

    name: str = "decode bands"
    reads: tuple[str, ...] = ("sound_latents",)
    writes: tuple[str, ...] = ("bands",)
    uses: tuple[str, ...] = ("audio_vae",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            wanted = state.request.params.output_type == "latent"
            state["bands"] = None if wanted else self._decode(ctx, state["sound_latents"])

    def _decode(self, ctx: Context, latents: Tensor) -> Tensor:
        vae: Any = ctx.network("audio_vae")
        tokens = latents.transpose(0, 1).flatten(1)  # [l, a m]: statistics are of these
        tokens = tokens * vae.latents_std.to(tokens) + vae.latents_mean.to(tokens)
        scaled = tokens.unflatten(1, (len(latents), -1)).transpose(0, 1)[None]  # [1, a, l, m]
        return vae.decode(scaled.to(vae.dtype), return_dict=False)[0]


@dataclass(frozen=True)
class Sound(Stage):
    """From `bands` to `sound`: float32 [channels, samples]; `sound_latents` themselves where there are none."""

    name: str = "sound"
    reads: tuple[str, ...] = ("bands", "sound_latents")
    writes: tuple[str, ...] = ("sound",)
    uses: tuple[str, ...] = ("vocoder",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            bands, latents = state["bands"], state["sound_latents"]
            state["sound"] = latents if bands is None else ctx.network("vocoder")(bands)[0].float()


def video_tokens(configs: Configs, request: Request) -> int:
    """Those of the video, which alone move the shift."""
    return prod(video_size(configs, request)[1:])


def conditions(ctx: Context, state: State, network: str, branch: str) -> LTX2Static:
    """The texts of a branch and the positions: the same at every step."""
    transformer, request = ctx.network(network), state.request
    assert isinstance(transformer, LTX2Transformer) and request.params.fps
    source = POSITIVE if branch == ISOLATED else branch
    texts = state[f"{source}_video_text"], state[f"{source}_sound_text"]
    sizes = video_size(ctx.configs, request), sound_size(ctx.configs, request)
    static = transformer.prepare(texts, *sizes, request.params.fps, together=branch != ISOLATED)
    return static if state["first"] is None else static.begun()


def inputs(ctx: Context, static: LTX2Static, latents: Tensor, timestep: Tensor) -> LTX2Inputs:
    """One row: time runs from 1000 (noise) to 0."""
    return LTX2Inputs(latents, timestep, static)


class LTX2(Pipeline):
    """Text, and perhaps the first frame, to video with sound."""

    spec = SPEC
    stages = (
        ReadText(),
        Connect(),
        ReadText(branch=NEGATIVE),
        Connect(branch=NEGATIVE),
        EncodeFirst(),
        InitBoth(),
        DenoiseBoth(
            conditions=conditions,
            inputs=inputs,
            token_count=video_tokens,
            preview=partial(preview_middle_alone, least=LEAST),
            spacing="linear64",
            texts=TEXTS,
            given=("first",),
        ),
        Part(),
        DecodeClip(latents="video_latents", tile=512, stride=448, least=LEAST),
        DecodeBands(),
        Sound(),
    )
    results = MappingProxyType({"video": "video", "audio": "sound"})


PIPELINE = LTX2
