"""Qwen-Image-Edit as a pipeline: that of Qwen-Image with a picture that is read with the prompt, and shown.

Source: the reference pipelines of diffusers (QwenImageEditPipeline, QwenImageEditInpaintPipeline), which lose the
places of pictures in a prompt with newer versions of transformers: their positions are right here, and so not the
reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from omnimuse.core.guidance import NEGATIVE
from omnimuse.core.request import Picture, Request
from omnimuse.core.sizes import of_area
from omnimuse.core.spec import Configs, Size
from omnimuse.models.qwen_image.pipeline import AFTER
from omnimuse.models.qwen_image.transformer import QwenTransformer
from omnimuse.models.qwen_image_edit.spec import SPEC, EditParams
from omnimuse.pipeline.encode import KeepPicture, ShowPictures, pixels_in, resized
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.reading import PLACE, Framed, ReadWithPictures
from omnimuse.pipeline.region import seen, seen_size
from omnimuse.pipeline.two_streams import drawing

BEFORE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
DROPPED = 64
"""The tokens of `BEFORE`, whose features the transformer never sees."""
A_PICTURE = f"<|vision_start|>{PLACE}<|vision_end|>"


def framed(prompt: str, pictures: int) -> str:
    """The prompt after its picture, in the chat that the model was trained with."""
    return f"{BEFORE}{A_PICTURE * pictures}{prompt}{AFTER}"


def shown_size(request: Request, picture: Picture) -> Size:
    """The size in which a picture is shown."""
    assert isinstance(request.extra, EditParams)
    return of_area(*seen_size(request, picture), request.extra.shown_area)


def read_sizes(request: Request, picture: Picture) -> Sequence[Size]:
    """The one size in which a picture is read with the prompt: that in which it is shown."""
    return (shown_size(request, picture),)


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture in the size in which it is shown: [3, H, W]."""
    return pixels_in(resized(seen(request, picture), shown_size(request, picture)))


READ = ReadWithPictures(Framed(framed, DROPPED), read_sizes)
AFTER_READING = (
    ShowPictures(prepare),
    KeepPicture(),
    *drawing(prepared(QwenTransformer, "shown"), given=("shown",), start="image_latents"),
)


class QwenImageEdit(Pipeline):
    """A picture and a text to a picture."""

    spec = SPEC
    stages = (READ, replace(READ, branch=NEGATIVE), *AFTER_READING)


PIPELINE = QwenImageEdit
