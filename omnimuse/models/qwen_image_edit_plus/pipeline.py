"""Qwen-Image-Edit from 2509 on as a pipeline: that of Qwen-Image-Edit, with pictures that have numbers in the prompt.

Source: the reference pipeline of diffusers (QwenImageEditPlusPipeline).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omnimuse.core.guidance import NEGATIVE
from omnimuse.core.request import Picture, Request
from omnimuse.core.sizes import of_area
from omnimuse.core.spec import Size
from omnimuse.models.qwen_image.pipeline import AFTER
from omnimuse.models.qwen_image_edit.pipeline import A_PICTURE, AFTER_READING, BEFORE, DROPPED
from omnimuse.models.qwen_image_edit_plus.spec import SPEC, EditPlusParams
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.reading import Framed, ReadWithPictures


def framed(prompt: str, pictures: int) -> str:
    """The prompt after its numbered pictures, in the chat that the model was trained with."""
    numbered = "".join(f"Picture {number}: {A_PICTURE}" for number in range(1, pictures + 1))
    return f"{BEFORE}{numbered}{prompt}{AFTER}"


def read_sizes(request: Request, picture: Picture) -> Sequence[Size]:
    """The one size in which a picture is read with the prompt."""
    assert isinstance(request.extra, EditPlusParams)
    return (of_area(picture.width, picture.height, request.extra.read_area),)


READ = ReadWithPictures(Framed(framed, DROPPED), read_sizes)


class QwenImageEditPlus(Pipeline):
    """Pictures and a text to a picture."""

    spec = SPEC
    stages = (READ, replace(READ, branch=NEGATIVE), *AFTER_READING)


PIPELINE = QwenImageEditPlus
