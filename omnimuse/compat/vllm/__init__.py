"""`vllm` by another root: the names of it that files of the contract import, where it has them (docs/compat.md)."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name, tell_of_modules
from omnimuse.compat.vllm.sampling_params import SamplingParams

__all__ = ["SamplingParams"]

tell_of_modules()


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
