"""Wan as a pipeline, from text, pictures or a video to video: the declaration, and the few functions that are its own.

Source: the reference pipelines of diffusers (WanPipeline, WanImageToVideoPipeline, WanVideoToVideoPipeline). Each
expert is guided where its own scale is above 1; the reference looks at the first scale alone, so the two differ where
exactly one scale is 1 or less.

Letters: C latent channels, f h w latent frames, height, width.
"""

from __future__ import annotations

import html
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.models.wan.given import encode_frames, encode_video, put_back, with_first
from omnimuse.models.wan.spec import SPEC, boundary_ratio, is_timed, latent_channels, patch_size
from omnimuse.models.wan.transformer import WanInputs, WanStatic, WanTransformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.derive import Derive, EncodeGiven
from omnimuse.pipeline.latents import InitLatents, clip_cells
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches
from omnimuse.pipeline.video import DecodeVideo, preview_middle_frame
from omnimuse.pipeline.vision import SeePictures

HIGH_NOISE, LOW_NOISE = "transformer", "transformer_2"
"""The two experts. A checkpoint without a boundary has only the first."""


def clean(tokenizer: Any, prompt: str) -> str:
    """The prompt without HTML entities and with single spaces.

    Like the reference it also repairs wrongly decoded characters ("schÃ¶n") where the library ftfy is installed.
    """
    if find_spec("ftfy") is not None:
        prompt = import_module("ftfy").fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())


def is_high_noise(configs: Configs, timestep: float, chosen: float | None = None) -> bool:
    """Whether the step at `timestep` is the first expert's; `chosen` is a boundary in place of the checkpoint's."""
    ratio = boundary_ratio(configs) if chosen is None else chosen
    train = configs["scheduler"].get("num_train_timesteps", 1000)
    return ratio is None or timestep >= ratio * train


def expert(ctx: Context, request: Request, timestep: float) -> str:
    """The network that evaluates the step at `timestep`."""
    return HIGH_NOISE if is_high_noise(ctx.configs, timestep, request.params.boundary_ratio) else LOW_NOISE


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, f, h, w] of the noise of one video."""
    return latent_channels(configs), *clip_cells(configs, request)


def video_tokens(configs: Configs, request: Request) -> int:
    """Patches of latents."""
    return prod(latent_shape(configs, request)[1:]) // prod(patch_size(configs))


def static_of(ctx: Context, state: State, network: str, branch: str, seen: Tensor | None = None) -> WanStatic:
    """The prompt of a branch and what is `seen` in pictures as that network embeds them, and positions."""
    transformer = ctx.network(network)
    assert isinstance(transformer, WanTransformer)
    return transformer.prepare(state[f"{branch}_embeds"], *clip_cells(ctx.configs, state.request), seen=seen)


def conditions(ctx: Context, state: State, network: str, branch: str) -> WanStatic:
    """The same with the pictures themselves: what does not change from step to step."""
    return replace(static_of(ctx, state, network, branch, state["seen"]), known=state["known"])


def times_of(ctx: Context, latents: Tensor, timestep: Tensor) -> Tensor:
    """The time of a row, or with `expand_timesteps` that of every token, which those of a frame share: [P]."""
    return timestep.expand(latents.shape[1] // patch_size(ctx.configs)[0] if is_timed(ctx.configs) else 1)


def inputs(ctx: Context, static: WanStatic, latents: Tensor, timestep: Tensor) -> WanInputs:
    """One row. Tokens of a frame that is given have no time."""
    times = times_of(ctx, latents, timestep)
    match static:
        case WanStatic(known=Tensor() as first) if is_timed(ctx.configs):
            latents, times = with_first(latents, first), torch.cat([torch.zeros_like(times[:1]), times[1:]])
        case WanStatic(known=Tensor() as told):
            latents = torch.cat([latents, told])
    return WanInputs(latents, times, static)


READ = for_both_branches(EncodeText(template=clean, pad=True, zeroed=True))
DENOISE = Denoise(
    conditions=conditions,
    inputs=inputs,
    token_count=video_tokens,
    preview=preview_middle_frame,
    networks=(HIGH_NOISE, LOW_NOISE),
    expert=expert,
    spacing="scheduler",
    given=("seen", "known"),
    start="clip_latents",
)


class Wan(Pipeline):
    """Text, and perhaps the first and the last frame, or a video to start from, to video."""

    spec = SPEC
    stages = (
        *READ,
        SeePictures(layer=-2),
        EncodeGiven("known", encode_frames),
        EncodeGiven("clip_latents", encode_video, "encode video", reads=("videos",)),
        InitLatents(latent_shape),
        DENOISE,
        Derive(put_back, "put back the first frame", ("latents", "known"), ("video_latents",)),
        DecodeVideo(latents="video_latents"),
    )
    results = MappingProxyType({"video": "video"})


PIPELINE = Wan
