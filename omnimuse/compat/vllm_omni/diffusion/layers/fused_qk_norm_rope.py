"""`vllm_omni.diffusion.layers.fused_qk_norm_rope`: kernels that are not here, which code that asks leaves alone."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


def fused_qk_norm_rope_min_tokens(default: int) -> int:
    """From how many tokens on code asks for the kernel: its own number."""
    return default


def _fused_cuda_supported(*args: Any, **kwargs: Any) -> bool:
    """Never: code then writes the norm and the rotation out."""
    return False


def fused_qk_norm_rope(*args: Any, **kwargs: Any) -> Any:
    """Refused: ask first."""
    raise ModelError("fused_qk_norm_rope is a kernel that is not here; call it only where it is said to be supported")


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
