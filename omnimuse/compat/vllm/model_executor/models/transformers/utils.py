"""`vllm.model_executor.models.transformers.utils`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


def init_on_device_without_buffers(device: Any) -> Any:
    """Refused: a pipeline reads its encoders with their own `from_pretrained`."""
    raise ModelError(f"init_on_device_without_buffers({device}) is not taken; read the network with from_pretrained")


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
