"""`vllm_omni.diffusion.layers.fused_qk_rope`: a kernel that is not here, which code that asks first leaves alone."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


def fused_qk_rope_supported(*args: Any, **kwargs: Any) -> bool:
    """Never: code then rotates by itself."""
    return False


def fused_qk_rope(*args: Any, **kwargs: Any) -> Any:
    """Refused: ask first."""
    raise ModelError("fused_qk_rope is a kernel that is not here; call it only where it is said to be supported")


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
