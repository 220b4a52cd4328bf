"""LongCat-Image-Edit as a pipeline: that of LongCat-Image with a picture that is read with the prompt, and shown.

Source: the reference pipeline of diffusers (LongCatImageEditPipeline), which loses the places of pictures in a prompt
with newer versions of transformers: their positions are right here, and so not the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from omnimuse.core.guidance import NEGATIVE
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs, Size
from omnimuse.models.longcat_image import pipeline as longcat
from omnimuse.models.longcat_image.transformer import LongCatImageTransformer
from omnimuse.models.longcat_image_edit.spec import SPEC
from omnimuse.pipeline.encode import ShowPictures, to_pixels
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.reading import PLACE, ReadWithPictures
from omnimuse.pipeline.text import Tokens
from omnimuse.pipeline.two_streams import drawing

BEFORE = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s). "
    "Then, based on the user's editing instructions, clearly and precisely determine how to modify the given image(s), "
    "ensuring that only the specified parts are altered and all other aspects remain consistent with the original(s)."
    "<|im_end|>\n<|im_start|>user\n"
)


def tokens(tokenizer: Any, prompt: str, limit: int, pieces: Sequence[int]) -> Tokens:
    """The picture, then the prompt, filled up to the limit, in the chat around them; the network sees both."""
    pictures = "".join(f"<|vision_start|>{PLACE * count}<|vision_end|>" for count in pieces)
    made = longcat.tokens(tokenizer, prompt, limit, BEFORE + pictures)
    return replace(made, first=len(tokenizer.numbers(BEFORE)))


def read_sizes(request: Request, picture: Picture) -> Sequence[Size]:
    """The sizes through which a picture goes before it is read: that of what is drawn, then half its sides."""
    width, height = request.size
    return (width, height), (width // 2, height // 2)


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture in the size in which it is shown: [3, H, W]."""
    return to_pixels(picture, *request.size)


READ = ReadWithPictures(tokens, read_sizes, processor="text_processor")


class LongCatImageEdit(Pipeline):
    """A picture and a text to a picture."""

    spec = SPEC
    stages = (
        READ,
        replace(READ, branch=NEGATIVE),
        ShowPictures(prepare),
        *drawing(prepared(LongCatImageTransformer, "shown"), given=("shown",)),
    )


PIPELINE = LongCatImageEdit
