"""Lucy Edit as a pipeline: that of Wan, whose network sees a video beside what it draws.

Source: the reference pipeline of diffusers (LucyEditPipeline).
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from omnimuse.models.lucy_edit.spec import SPEC
from omnimuse.models.wan.given import encode_video
from omnimuse.models.wan.pipeline import DENOISE, READ, latent_shape, static_of, times_of
from omnimuse.models.wan.transformer import WanInputs, WanStatic
from omnimuse.pipeline.derive import EncodeGiven
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.video import DecodeVideo


def conditions(ctx: Context, state: State, network: str, branch: str) -> WanStatic:
    """The prompt of a branch as that network embeds it, the video and positions: the same at every step."""
    return replace(static_of(ctx, state, network, branch), known=state["source"])


def inputs(ctx: Context, static: WanStatic, latents: Tensor, timestep: Tensor) -> WanInputs:
    """One row: the latents that are drawn, then those of the video."""
    assert static.known is not None
    return WanInputs(torch.cat([latents, static.known]), times_of(ctx, latents, timestep), static)


class LucyEdit(Pipeline):
    """A video, and what to change in it, to video."""

    spec = SPEC
    stages = (
        *READ,
        EncodeGiven("source", encode_video, "encode video", reads=("videos",)),
        InitLatents(latent_shape),
        replace(DENOISE, conditions=conditions, inputs=inputs, given=("source",), start=None),
        DecodeVideo(),
    )
    results = MappingProxyType({"video": "video"})


PIPELINE = LucyEdit
