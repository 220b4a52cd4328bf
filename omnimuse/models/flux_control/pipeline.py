"""FLUX.1 Depth and Canny as a pipeline: that of FLUX.1, whose network sees a picture beside what it draws.

Source: the reference pipeline of diffusers (FluxControlPipeline).
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.models.flux.pipeline import DENOISE, ENCODERS, static_of
from omnimuse.models.flux.transformer import FluxStatic
from omnimuse.models.flux_control.spec import SPEC
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.filling import kept_shape
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import for_both_branches


def conditions(ctx: Context, state: State, network: str, branch: str) -> FluxStatic:
    """The text of a branch, the picture and the positions: the same at every step."""
    return replace(static_of(ctx, state, network, branch, ()), beside=state["image_latents"])


class FluxControl(Pipeline):
    """Text, and a picture to follow, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(*ENCODERS),
        EncodeImage(),
        DrawImageLatents(),
        InitLatents(kept_shape),
        replace(DENOISE, conditions=conditions, given=("image_latents",), start=None),
        DecodeImage(),
    )


PIPELINE = FluxControl
