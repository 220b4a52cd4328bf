"""The stages of Qwen3-Omni: look and listen, read, write; meanwhile talk, and decode what was said."""

from __future__ import annotations

from types import MappingProxyType

from omnimuse.models.qwen3_omni.speaking import Overheard, SpeakOverheard
from omnimuse.models.qwen3_omni.spec import SPEC
from omnimuse.models.qwen3_omni.thinking import ThinkAloud
from omnimuse.pipeline.answering import DecodeAnswer
from omnimuse.pipeline.conversing import RECORDS, Perceive, ReadShown, spectrum
from omnimuse.pipeline.pipeline import Pipeline


class Qwen3OmniPipeline(Pipeline):
    """Messages or a prompt in, with pictures, videos and sounds; text out, and speech."""

    spec = SPEC
    records = (*RECORDS, Overheard)
    tracks = (
        (Perceive(spectrum), ReadShown(chunked=False), ThinkAloud()),
        (SpeakOverheard(),),
        (DecodeAnswer("code2wav"),),
    )
    results = MappingProxyType({"text": "reply", "audio": "sound"})


PIPELINE = Qwen3OmniPipeline
