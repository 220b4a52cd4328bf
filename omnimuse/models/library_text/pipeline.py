"""The stages of any language model: read, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omnimuse.models.library_text.spec import SPEC
from omnimuse.pipeline.generate import Generate, ReadTalk
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context


@dataclass(frozen=True)
class GenerateAsTold(Generate):
    """A checkpoint without a generation_config.json says in its config.json what ends a text, as in the library."""

    def told(self, ctx: Context) -> Mapping[str, Any]:
        return super().told(ctx) or {"eos_token_id": ctx.configs[self.network].get("eos_token_id")}


class LibraryTextPipeline(Pipeline):
    """Messages or a prompt in, text out."""

    spec = SPEC
    stages = (ReadTalk(), GenerateAsTold())
    results = MappingProxyType({"text": "reply"})


PIPELINE = LibraryTextPipeline
