"""FLUX.2 dev as a pipeline: that of Klein with another reader of texts, and guidance that is an input.

Source: the reference pipeline of diffusers (Flux2Pipeline).
"""

from __future__ import annotations

from typing import Any

from omnimuse.core.guidance import ONLY_POSITIVE
from omnimuse.models.flux2.pipeline import conditions, empirical_mu, image_tokens, latent_shape, prepare
from omnimuse.models.flux2_dev.spec import LAYERS, SPEC
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import ShowPictures
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.text import EncodeText, HiddenStates
from omnimuse.pipeline.two_streams import two_stream_inputs

SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
"""What the text encoder was told while the network learned from it; the line's end is the authors'."""

PLACE_OF_PICTURE = "[IMG]"


def chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the user's message of a chat. Words that mean a picture's place in it are left out."""
    said = (("system", SYSTEM), ("user", prompt.replace(PLACE_OF_PICTURE, "")))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)


class Flux2Dev(Pipeline):
    """Text, and perhaps pictures, to picture."""

    spec = SPEC
    stages = (
        EncodeText(take=HiddenStates(LAYERS), template=chat, pad=True, marked=True),
        ShowPictures(prepare),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=two_stream_inputs,
            token_count=image_tokens,
            preview=preview_by_decoding,
            spacing="linear64",
            mu=empirical_mu,
            branches=ONLY_POSITIVE,
            given=("shown",),
        ),
        DecodeImage(),
    )


PIPELINE = Flux2Dev
