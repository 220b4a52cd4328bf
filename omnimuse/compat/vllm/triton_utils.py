"""`vllm.triton_utils`: code of the contract asks whether it may use kernels of its own, and hears no."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name

HAS_TRITON = False


def __getattr__(name: str) -> Any:
    if name in ("triton", "tl"):
        return None  # code that asks `HAS_TRITON` first does not touch it
    raise no_name(__name__, name)
