"""FLUX.1 Fill as a pipeline: that of FLUX.1, whose network sees beside what it draws what is kept of a picture.

Source: the reference pipeline of diffusers (FluxFillPipeline). C latent channels, h w latent sides.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.models.flux.pipeline import DENOISE, ENCODERS, static_of
from omnimuse.models.flux.transformer import FluxStatic
from omnimuse.models.flux_fill.spec import SPEC
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.filling import DrawKept, EncodeKept, kept_shape
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import for_both_branches


def conditions(ctx: Context, state: State, network: str, branch: str) -> FluxStatic:
    """The text of a branch, what is kept of the picture and the positions: the same at every step."""
    return replace(static_of(ctx, state, network, branch, ()), beside=state["beside"])


class FluxFill(Pipeline):
    """Text, and a picture with a part to fill, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(*ENCODERS),
        EncodeImage(),
        EncodeKept(),
        DrawImageLatents(),
        InitLatents(kept_shape),
        DrawKept(),
        replace(DENOISE, conditions=conditions, given=("beside",)),
        DecodeImage(),
    )


PIPELINE = FluxFill
