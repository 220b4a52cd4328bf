"""Bria as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (BriaPipeline).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from omnimuse.components.two_streams import TwoStreamInputs, TwoStreamStatic
from omnimuse.core.guidance import NEGATIVE
from omnimuse.models.bria.spec import SPEC
from omnimuse.models.bria.transformer import BriaTransformer
from omnimuse.pipeline.latents import cells
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, limit_of
from omnimuse.pipeline.two_streams import drawing


def something(prompt: str) -> str | None:
    """A negative prompt, unless it is empty: that is not read, and the network sees zeros."""
    return prompt or None


def conditions(ctx: Context, state: State, network: str, branch: str) -> TwoStreamStatic:
    """The text of a branch and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, BriaTransformer)
    length = limit_of(ctx, state.request)
    return transformer.prepare(state[f"{branch}_embeds"], *cells(ctx.configs, state.request), length)


def inputs(
    ctx: Context, static: TwoStreamStatic, latents: Tensor, timestep: Tensor
) -> TwoStreamInputs[TwoStreamStatic]:
    """One row: time runs from 1000 (noise) to 0 (picture), rounded to the computing dtype as in the reference."""
    return TwoStreamInputs(latents, timestep.to(ctx.dtype), static)


READ = EncodeText(pad=True, zeroed=True)


class Bria(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        READ,
        replace(READ, branch=NEGATIVE, of=something),
        *drawing(conditions, inputs=inputs, spacing="trained"),
    )


PIPELINE = Bria
