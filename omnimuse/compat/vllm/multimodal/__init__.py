"""`vllm.multimodal`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
