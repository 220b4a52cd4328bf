"""The stages of a model that talks and draws: read, write, and draw what was asked for in the words of the answer."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from omnimuse.models.talk_and_draw.spec import SPEC, WORDS, WRITER, marks
from omnimuse.models.z_image.pipeline import DENOISE, READ
from omnimuse.pipeline.asked import Answer, DenoiseAsked, EncodeAsked, like
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.pipeline.generate import ReadTalk
from omnimuse.pipeline.latents import InitLatents, latent_shape
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.text import for_both_branches


class TalkAndDraw(Pipeline):
    """Messages or a prompt in; text out, and a picture where it asks for one."""

    spec = SPEC
    stages = (
        ReadTalk(WORDS),
        Answer(WRITER, WORDS, marks=marks),
        *for_both_branches(like(READ, EncodeAsked)),
        InitLatents(latent_shape),
        like(replace(DENOISE, start=None), DenoiseAsked),
        DecodeImage(),
    )
    results = MappingProxyType({"text": "reply", "image": "image"})


PIPELINE = TalkAndDraw
