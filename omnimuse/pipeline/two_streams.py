"""What the loop hands to networks of two streams (`components/two_streams.py`), for families to name in `Denoise`."""

from __future__ import annotations

from torch import Tensor

from omnimuse.components.two_streams import Static, TwoStreamInputs
from omnimuse.pipeline.stage import Context


def two_stream_inputs(ctx: Context, static: Static, latents: Tensor, timestep: Tensor) -> TwoStreamInputs[Static]:
    """One row: time runs from 1 (noise) to 0 (picture), rounded to the computing dtype as in the references."""
    return TwoStreamInputs(latents, timestep.to(ctx.dtype) / 1000.0, static)
