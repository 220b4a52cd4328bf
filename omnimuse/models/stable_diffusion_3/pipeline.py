"""Stable Diffusion 3 and 3.5 as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipelines of diffusers (StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline). C latent
channels, h w latent sides, S text tokens, D width of their features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.core.guidance import POSITIVE
from omnimuse.models.stable_diffusion_3.spec import SKIPPED, SPEC, Sd3Params
from omnimuse.models.stable_diffusion_3.transformer import Sd3Inputs, Sd3Static, Sd3Transformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.latents import InitLatents, cells, latent_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenAndProjected, for_both_branches

CLIP_TOKENS = 77  # CLIP has no more positions; of a longer prompt only T5 sees the rest

ENCODERS = (
    EncodeText(take=HiddenAndProjected(-2), length=CLIP_TOKENS, pad=True, masked=False),
    EncodeText(
        text="embeds_2",
        take=HiddenAndProjected(-2),
        encoder="text_encoder_2",
        tokenizer="tokenizer_2",
        length=CLIP_TOKENS,
        pad=True,
        masked=False,
    ),
    EncodeText(
        text="embeds_3", encoder="text_encoder_3", tokenizer="tokenizer_3", pad=True, masked=False, optional=True
    ),
)
"""Tokens and one vector of either CLIP, and the tokens of T5. Pads are attended to, so their number is part of the
result."""


def conditions(ctx: Context, state: State, network: str, branch: str) -> Sd3Static:
    """The text of a branch and the places of patches: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, Sd3Transformer) and isinstance(extra, Sd3Params)
    text, skipped = (POSITIVE, extra.skip_guidance_layers) if branch == SKIPPED else (branch, ())
    tokens, pooled = zip(state[f"{text}_embeds"], state[f"{text}_embeds_2"], strict=True)
    clip, t5 = torch.cat(tokens, dim=-1), state[f"{text}_embeds_3"]  # [77, D of both], [S, D]
    if t5 is None:
        limit = state.request.params.max_sequence_length
        assert limit is not None
        t5 = clip.new_zeros(limit, transformer.config.joint_attention_dim)
    features = torch.cat([F.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5])  # [77 + S, D]
    return transformer.prepare(features, torch.cat(pooled), *cells(ctx.configs, state.request), skipped)


def inputs(ctx: Context, static: Sd3Static, latents: Tensor, timestep: Tensor) -> Sd3Inputs:
    """One row: time runs from 1000 (noise) to 0 (picture)."""
    return Sd3Inputs(latents, timestep, static)


class StableDiffusion3(Pipeline):
    """Text, and perhaps a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(*ENCODERS),
        EncodeImage(),
        DrawImageLatents(),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            start="image_latents",
            spacing="scheduler",
            texts=("embeds", "embeds_2", "embeds_3"),
        ),
        DecodeImage(),
    )


PIPELINE = StableDiffusion3
