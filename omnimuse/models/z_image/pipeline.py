"""Z-Image as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (ZImagePipeline). C latent channels, h w latent sides, S text tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omnimuse.models.z_image.spec import SPEC
from omnimuse.models.z_image.transformer import ZImageInputs, ZImageStatic, ZImageTransformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.latents import InitLatents, latent_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.text import EncodeText, HiddenState, for_both_branches


def chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the one user message of a chat, the answer opened; what the text encoder was trained on."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def inputs(ctx: Context, static: ZImageStatic, latents: Tensor, timestep: Tensor) -> ZImageInputs:
    """One row: the network's time runs from 0 (noise) to 1 (picture)."""
    return ZImageInputs(static=static, latents=latents, t=(1000.0 - timestep) / 1000.0)


READ = EncodeText(template=chat, take=HiddenState(-2))
DENOISE = Denoise(
    conditions=prepared(ZImageTransformer),
    inputs=inputs,
    token_count=packed_tokens,
    preview=preview_by_decoding,
    start="image_latents",
    flip=True,  # the network predicts data - noise
)
"""What others have in common that draw with this network."""


class ZImage(Pipeline):
    """Text, and perhaps a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(READ),
        EncodeImage(),
        DrawImageLatents(),
        InitLatents(latent_shape),
        DENOISE,
        DecodeImage(),
    )


PIPELINE = ZImage
