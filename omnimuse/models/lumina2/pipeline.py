"""Lumina-Image 2.0 as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (Lumina2Pipeline). It takes the latent channels for tokens where a
scheduler's shift follows the size, which the published one's does not; here tokens are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from omnimuse.core.guidance import NEGATIVE
from omnimuse.models.lumina2.spec import SPEC, LuminaParams
from omnimuse.models.lumina2.transformer import LuminaInputs, LuminaStatic, LuminaTransformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import InitLatents, latent_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState


@dataclass(frozen=True)
class EncodeInstructed(EncodeText):
    """A prompt, read after the request's instruction of the text encoder."""

    def words(self, ctx: Context, state: State) -> str:
        extra = state.request.extra
        assert isinstance(extra, LuminaParams)
        return f"{extra.system_prompt} <Prompt Start> {super().words(ctx, state)}"


def inputs(ctx: Context, static: LuminaStatic, latents: Tensor, timestep: Tensor) -> LuminaInputs:
    """One row: the network's time runs from 0 (noise) to 1 (picture)."""
    return LuminaInputs(latents, 1 - timestep / 1000.0, static)


class Lumina2(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        EncodeInstructed(take=HiddenState(-2)),
        EncodeText(take=HiddenState(-2), branch=NEGATIVE),
        InitLatents(latent_shape),
        Denoise(
            conditions=prepared(LuminaTransformer),
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            spacing="linear64",
            flip=True,  # the network predicts data - noise
        ),
        DecodeImage(),
    )


PIPELINE = Lumina2
