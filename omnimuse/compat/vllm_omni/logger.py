"""`vllm_omni.logger`: that of `vllm.logger`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.logger import init_logger

__all__ = ["init_logger"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
