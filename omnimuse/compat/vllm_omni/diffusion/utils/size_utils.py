"""`vllm_omni.diffusion.utils.size_utils`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name


def normalize_min_aligned_size(height: int, width: int, alignment: int) -> tuple[int, int]:
    """Both sides rounded down to a multiple of `alignment`, and no less than that."""
    if alignment < 1:
        raise ValueError(f"alignment={alignment} is not allowed; use at least 1")
    high, wide = (max(alignment, side // alignment * alignment) for side in (height, width))
    return high, wide


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
