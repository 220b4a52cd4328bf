"""FLUX.1 Kontext as a pipeline: that of FLUX.1 with a picture beside the one that is drawn.

Source: the reference pipelines of diffusers (FluxKontextPipeline, FluxKontextInpaintPipeline).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from omnimuse.core.autoencoder import factor
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.models.flux.pipeline import DENOISE, ENCODERS, static_of
from omnimuse.models.flux.spec import PATCH
from omnimuse.models.flux.transformer import FluxStatic
from omnimuse.models.flux_kontext.spec import SPEC, KontextParams, shown_size
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.pipeline.encode import KeepPicture, ShowPictures, pixels_in, resized
from omnimuse.pipeline.latents import InitLatents, packed_shape
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.region import seen
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import for_both_branches


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture in the size in which it is shown: [3, H, W]."""
    assert isinstance(request.extra, KontextParams)
    whole, step = seen(request, picture), PATCH * factor(configs["vae"])
    return pixels_in(resized(whole, shown_size(whole.size, step, request.extra)))


def conditions(ctx: Context, state: State, network: str, branch: str) -> FluxStatic:
    """The text of a branch, the picture and the positions: the same at every step."""
    return static_of(ctx, state, network, branch, state["shown"])


class FluxKontext(Pipeline):
    """Text, and mostly a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(*ENCODERS),
        ShowPictures(prepare),
        KeepPicture(),
        InitLatents(packed_shape),
        replace(DENOISE, conditions=conditions, given=("shown",)),
        DecodeImage(),
    )


PIPELINE = FluxKontext
