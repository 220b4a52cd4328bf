"""Ovis-Image as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (OvisImagePipeline).
"""

from __future__ import annotations

from typing import Any

from omnimuse.models.ovis_image.spec import SPEC
from omnimuse.models.ovis_image.transformer import OvisImageTransformer
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.text import EncodeText, for_both_branches
from omnimuse.pipeline.two_streams import drawing

SYSTEM = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the "
    "objects and background: "
)
DROPPED = 28  # tokens; of what stands before the prompt the colon stays, as in the reference


def chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the one user message of a chat, after a fixed instruction; the answer opened, thinking skipped."""
    messages = [{"role": "user", "content": SYSTEM + prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


class OvisImage(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(template=chat, pad=True, zeroed=True, drop=DROPPED)),
        *drawing(prepared(OvisImageTransformer)),
    )


PIPELINE = OvisImage
