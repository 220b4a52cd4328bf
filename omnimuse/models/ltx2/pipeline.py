"""LTX-2 as a pipeline, from text or a first frame to video with sound: the declaration, and what is really its own.

Source: the reference pipelines of diffusers (LTX2Pipeline, LTX2ImageToVideoPipeline).

Letters: c f h w channels, frames, height, width of the video's latents; a l m channels, length, bands of the sound's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.media.video import recompressed
from omnimuse.models.ltx2.spec import ISOLATED, SPAN, SPEC, LTX2Params
from omnimuse.models.ltx2.transformer import LTX2Inputs, LTX2Static, LTX2Transformer
from omnimuse.pipeline.clips import first_latents
from omnimuse.pipeline.derive import Derive, EncodeGiven
from omnimuse.pipeline.encode import pixels_in
from omnimuse.pipeline.latents import clip_cells, clip_tokens, frames_of
from omnimuse.pipeline.parted import DenoiseParts, Leading, part_latents, start_parts
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.stage import Context
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
        told: Mapping[str, Any] = ctx.configs["connectors"]  # a text and their registers fill a multiple of those
        if limit % (registers := int(told.get("video_connector_num_learnable_registers") or 128)):
            near = limit // registers * registers or registers
            raise RequestError(
                f"max_sequence_length={limit} is not a multiple of {registers}; use {near}", "max_sequence_length"
            )
        tokens = tokenizer(text, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        read = self.counted(tokenizer, text, limit, int(tokens.attention_mask.sum()))
        order = tokens.attention_mask[0].argsort(stable=True)  # pads first
        ids, mask = (each[:, order].to(ctx.device) for each in (tokens.input_ids, tokens.attention_mask))
        output = ctx.network(self.encoder)(ids, attention_mask=mask, output_hidden_states=True)
        states = torch.stack(output.hidden_states, dim=-1).flatten(2, 3)
        return (states, mask), read


def connected(read: ReadText) -> Derive:
    """What the network reads of a prompt, for video and for sound: [L, D] each; None where it is not needed."""
    [states] = read.writes

    def make(ctx: Context, state: State) -> Sequence[tuple[Tensor, Tensor] | None]:
        if state[states] is None:
            return [None]
        video, sound, _ = ctx.network("connectors")(*state[states], padding_side="left")
        return [(video[0], sound[0])]

    name, reads = f"connect {read.source.replace('_', ' ')}", (read.source, states)
    return Derive(make, name, reads, (f"{read.branch}_texts",), ("connectors",), same=read.key, computed=True)


def part_sizes(configs: Configs, request: Request) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(c, f, h, w) of the video's latents, and (a, l, m) of the sound's, which is as long as the video plays."""
    vae, video = configs["audio_vae"], configs["transformer"]
    second = vae.get("sample_rate", 16_000) / vae.get("mel_hop_length", 160) / SPAN
    assert request.params.fps
    length = max(1, round(frames_of(request) / request.params.fps * second))
    sound = vae.get("latent_channels", 8), length, vae.get("mel_bins", 64) // SPAN
    return (int(video.get("in_channels") or 128), *clip_cells(configs, request)), sound


def leading(request: Request) -> Sequence[Leading]:
    """How the video is guided, and how its sound is: as the video, unless it has choices of its own."""
    extra = cast(LTX2Params, request.extra)
    video = (request.params.guidance_scale or 0.0, extra.modality_scale, extra.guidance_rescale)
    sound = (extra.audio_guidance_scale, extra.audio_modality_scale, extra.audio_guidance_rescale)
    both = video, tuple(own or other for own, other in zip(sound, video, strict=True))
    return [({NEGATIVE: scale, ISOLATED: apart}, rescale) for scale, apart, rescale in both]


def encode_first(ctx: Context, request: Request) -> Tensor:
    """The means of the scaled latents [c, 1, h, w] of the first frame: the picture as H.264 leaves it, in the size of
    the video by a bilinear filter.
    """
    crf = cast(LTX2Params, request.extra).image_crf
    picture = canvas(request.images[0], None)
    picture = recompressed(picture, crf) if crf else picture
    return first_latents(ctx, pixels_in(picture.resize(request.size, Image.Resampling.BILINEAR)))


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
    texts, sizes = state[f"{source}_texts"], part_sizes(ctx.configs, request)
    static = transformer.prepare(texts, *sizes, request.params.fps, together=branch != ISOLATED)
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
        start_parts(part_sizes),
        DenoiseParts(
            conditions=conditions,
            inputs=inputs,
            token_count=clip_tokens,  # sound does not move the shift
            preview=partial(preview_middle_alone, least=LEAST),
            spacing="linear64",
            texts=("texts",),
            given=("first",),
            sizes=part_sizes,
            leading=leading,
        ),
        part_latents(part_sizes, "video_latents", "sound_latents"),
        DecodeClip(latents="video_latents", tile=512, stride=448, least=LEAST),
        Derive(decode_bands, "decode bands", ("sound_latents",), ("bands",), uses=("audio_vae",)),
        Derive(sound, "sound", ("bands", "sound_latents"), ("sound",), uses=("vocoder",)),
    )
    results = MappingProxyType({"video": "video", "audio": "sound"})


PIPELINE = LTX2
