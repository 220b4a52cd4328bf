"""`sglang.multimodal_gen.runtime.utils.logging_utils`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.vllm.logger import init_logger

__all__ = ["init_logger"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
