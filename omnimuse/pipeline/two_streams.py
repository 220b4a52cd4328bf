"""What families with networks of two streams (`components/two_streams.py`) have in their pipelines after the reading of
texts, for patches of 2 x 2 latents.
"""

from __future__ import annotations

from torch import Tensor

from omnimuse.components.two_streams import Static, TwoStreamInputs
from omnimuse.diffusion.schedules import Spacing
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Conditions, Denoise, Inputs
from omnimuse.pipeline.latents import InitLatents, packed_shape, packed_tokens
from omnimuse.pipeline.stage import Context, Stage


def two_stream_inputs(ctx: Context, static: Static, latents: Tensor, timestep: Tensor) -> TwoStreamInputs[Static]:
    """One row: time runs from 1 (noise) to 0 (picture), rounded to the computing dtype as in the references."""
    return TwoStreamInputs(latents, timestep.to(ctx.dtype) / 1000.0, static)


def drawing(
    conditions: Conditions,
    *,
    inputs: Inputs = two_stream_inputs,
    spacing: Spacing = "linear64",
    given: tuple[str, ...] = (),
    start: str | None = None,
) -> tuple[Stage, ...]:
    """The stages that draw a picture, from noise or from what the slot `start` holds; the rest is as in `Denoise`."""
    return (
        InitLatents(packed_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            start=start,
            spacing=spacing,
            given=given,
        ),
        DecodeImage(),
    )
