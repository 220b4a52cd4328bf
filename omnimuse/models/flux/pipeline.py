"""FLUX.1 as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (FluxPipeline). C latent channels, h w latent sides, S text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from omnimuse.models.flux.spec import SPEC
from omnimuse.models.flux.transformer import FluxStatic, FluxTransformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.latents import InitLatents, cells, packed_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState, Pooled, for_both_branches
from omnimuse.pipeline.two_streams import two_stream_inputs

CLIP_TOKENS = 77  # CLIP has no more positions; of a longer prompt only T5 sees the rest

ENCODERS = (
    EncodeText(text="pooled", take=Pooled(), length=CLIP_TOKENS, pad=True, masked=False),
    EncodeText(take=HiddenState(-1), encoder="text_encoder_2", tokenizer="tokenizer_2", pad=True, masked=False),
)
"""The one vector of CLIP, and the tokens of T5. Pads are attended to, so their number is part of the result."""


def static_of(ctx: Context, state: State, network: str, branch: str, shown: Sequence[Tensor]) -> FluxStatic:
    """The text of a branch, the latents of pictures that are shown and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, FluxTransformer)
    size = cells(ctx.configs, state.request)
    texts = state[f"{branch}_embeds"], state[f"{branch}_pooled"]
    return transformer.prepare(texts, float(state.request.params.guidance_scale or 0.0), size, shown)


def conditions(ctx: Context, state: State, network: str, branch: str) -> FluxStatic:
    """What the network is told of a request that it is shown no pictures for."""
    return static_of(ctx, state, network, branch, ())


DENOISE = Denoise(
    conditions=conditions,
    inputs=two_stream_inputs,
    token_count=packed_tokens,
    preview=preview_by_decoding,
    start="image_latents",
    spacing="linear64",
    texts=("embeds", "pooled"),
)


class Flux(Pipeline):
    """Text, and perhaps a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(*ENCODERS),
        EncodeImage(),
        DrawImageLatents(),
        InitLatents(packed_shape),
        DENOISE,
        DecodeImage(),
    )


PIPELINE = Flux
