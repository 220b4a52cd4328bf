"""The stages of Qwen3: read, write."""

from __future__ import annotations

from types import MappingProxyType

from omnimuse.models.qwen3_text.spec import SPEC
from omnimuse.pipeline.generate import Generate, ReadTalk
from omnimuse.pipeline.pipeline import Pipeline


class Qwen3TextPipeline(Pipeline):
    """Messages or a prompt in, text out."""

    spec = SPEC
    stages = (ReadTalk(), Generate())
    results = MappingProxyType({"text": "reply"})


PIPELINE = Qwen3TextPipeline
