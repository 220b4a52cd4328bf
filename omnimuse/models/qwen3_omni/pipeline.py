"""The stages of Qwen3-Omni: look and listen, read, write; meanwhile talk, and decode what was said."""

from __future__ import annotations

from types import MappingProxyType

from omnimuse.models.qwen3_omni.reading import Brief, Perceive, ReadTalk, Shown
from omnimuse.models.qwen3_omni.speaking import DecodeAnswer, Overheard, Speak
from omnimuse.models.qwen3_omni.spec import SPEC
from omnimuse.models.qwen3_omni.thinking import Think
from omnimuse.models.qwen3_omni.vision import Seen
from omnimuse.pipeline.pipeline import Pipeline


class Qwen3OmniPipeline(Pipeline):
    """Messages or a prompt in, with pictures, videos and sounds; text out, and speech."""

    spec = SPEC
    records = (Brief, Overheard, Seen, Shown)
    tracks = ((Perceive(), ReadTalk(), Think()), (Speak(),), (DecodeAnswer("code2wav"),))
    results = MappingProxyType({"text": "reply", "audio": "sound"})


PIPELINE = Qwen3OmniPipeline
