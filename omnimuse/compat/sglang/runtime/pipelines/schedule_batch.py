"""`sglang.multimodal_gen.runtime.pipelines.schedule_batch`: an older place of what `pipelines_core` has."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.runtime.pipelines_core.schedule_batch import ForwardBatch, OutputBatch, Req

__all__ = ["ForwardBatch", "OutputBatch", "Req"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
