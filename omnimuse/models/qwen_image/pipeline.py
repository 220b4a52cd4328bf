"""Qwen-Image as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipelines of diffusers (QwenImagePipeline, QwenImageImg2ImgPipeline). C latent channels, h w
latent sides, S text tokens.
"""

from __future__ import annotations

from typing import Any

from omnimuse.models.qwen_image.spec import SPEC
from omnimuse.models.qwen_image.transformer import QwenTransformer
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.text import EncodeText, HiddenState, for_both_branches
from omnimuse.pipeline.two_streams import drawing

BEFORE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DROPPED = 34
"""The tokens of `BEFORE`, whose features the transformer never sees."""


def described(tokenizer: Any, prompt: str) -> str:
    """The prompt in the chat that the model was trained with."""
    return f"{BEFORE}{prompt}{AFTER}"


class QwenImage(Pipeline):
    """Text, and perhaps a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(template=described, take=HiddenState(-1), drop=DROPPED)),
        EncodeImage(),
        DrawImageLatents(),
        *drawing(prepared(QwenTransformer), start="image_latents"),
    )


PIPELINE = QwenImage
