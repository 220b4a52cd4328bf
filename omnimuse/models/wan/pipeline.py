"""Wan text to video as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (WanPipeline). Each expert is guided where its own scale is above 1; the
reference looks at the first scale alone, so the two differ where exactly one scale is 1 or less.

Letters: C latent channels, f h w latent frames, height, width.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any, cast

from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import OPTIONS, Configs
from omnimuse.models.wan.spec import SPEC, boundary_ratio, factors, patch_size
from omnimuse.models.wan.transformer import WanInputs, WanStatic, WanTransformer
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches
from omnimuse.pipeline.video import DecodeVideo, preview_middle_frame

HIGH_NOISE, LOW_NOISE = "transformer", "transformer_2"
"""The two experts. A checkpoint without a boundary has only the first."""


def clean(tokenizer: Any, prompt: str) -> str:
    """The prompt without HTML entities and with single spaces.

    Like the reference it also repairs wrongly decoded characters ("schÃ¶n") where the library ftfy is installed.
    """
    if find_spec("ftfy") is not None:
        prompt = import_module("ftfy").fix_text(prompt)
    return " ".join(html.unescape(html.unescape(prompt)).split())


def is_high_noise(configs: Configs, timestep: float) -> bool:
    """Whether the step at `timestep` is the first expert's."""
    ratio = boundary_ratio(configs)
    train = cast(Mapping[str, Any], configs["scheduler"]).get("num_train_timesteps", 1000)
    return ratio is None or timestep >= ratio * train


def expert(ctx: Context, request: Request, timestep: float) -> str:
    """The network that evaluates the step at `timestep`."""
    return HIGH_NOISE if is_high_noise(ctx.configs, timestep) else LOW_NOISE


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, f, h, w] of the noise of one video."""
    params, (temporal, spatial) = request.params, factors(configs)
    assert params.num_frames and params.height and params.width
    channels = cast(Mapping[str, Any], configs["transformer"]).get("in_channels", 16)
    return channels, (params.num_frames - 1) // temporal + 1, params.height // spatial, params.width // spatial


def video_tokens(configs: Configs, request: Request) -> int:
    """Patches of latents."""
    return prod(latent_shape(configs, request)[1:]) // prod(patch_size(configs))


def conditions(ctx: Context, state: State, network: str, branch: str) -> WanStatic:
    """The prompt of a branch as that network embeds it, and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, WanTransformer)
    _, f, h, w = latent_shape(ctx.configs, state.request)
    return transformer.prepare(state[f"{branch}_embeds"], f, h, w)


def inputs(ctx: Context, static: WanStatic, latents: Tensor, timestep: Tensor) -> WanInputs:
    """One row. Checkpoints with `expand_timesteps` are told the time of every token; those of a frame share it."""
    spans = latents.shape[1] // patch_size(ctx.configs)[0] if ctx.configs[OPTIONS].get("expand_timesteps") else 1
    return WanInputs(latents, timestep.expand(spans), static)


class Wan(Pipeline):
    """Text to video."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(template=clean, pad=True, zeroed=True)),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=video_tokens,
            preview=preview_middle_frame,
            networks=(HIGH_NOISE, LOW_NOISE),
            expert=expert,
            spacing="scheduler",
        ),
        DecodeVideo(),
    )
    result = "video"
    media = "video"


PIPELINE = Wan
