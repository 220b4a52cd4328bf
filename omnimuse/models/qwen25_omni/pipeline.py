"""The stages of Qwen2.5-Omni: look and listen, read, write; meanwhile talk, paint what was said, and sound it."""

from __future__ import annotations

from types import MappingProxyType

from omnimuse.models.qwen25_omni.answering import Overheard, SpeakThought, ThinkAloud, voiced
from omnimuse.models.qwen25_omni.hearing import spectrum
from omnimuse.models.qwen25_omni.spec import SPEC
from omnimuse.pipeline.conversing import RECORDS, Perceive, ReadShown
from omnimuse.pipeline.painting import Paint
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.sounding import Sound

LEAST = 128
"""Pieces of a frame of a video, at least."""


class Qwen25OmniPipeline(Pipeline):
    """Messages or a prompt in, with pictures, videos and sounds; text out, and speech."""

    spec = SPEC
    records = (*RECORDS, Overheard)
    tracks = (
        (Perceive(spectrum, LEAST), ReadShown(), ThinkAloud()),
        (SpeakThought(),),
        (Paint(voiced),),
        (Sound(),),
    )
    results = MappingProxyType({"text": "reply", "audio": "sound"})


PIPELINE = Qwen25OmniPipeline
