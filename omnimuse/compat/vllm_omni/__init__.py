"""`vllm_omni` by another root: the names that the guide of vLLM-Omni has, where it has them (docs/compat.md).

Change the import root of a model file or a script from `vllm_omni` to `omnimuse.compat.vllm_omni`, and it runs on this
engine. What is behind the names is in `compat/contract/`; what only scripts use is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omnimuse.compat.contract.names import no_name, tell_of_modules
from omnimuse.compat.vllm_omni.diffusion.registry import register

__all__ = ["AsyncOmni", "Omni", "register"]

_ENTRY_POINTS = {"Omni": "omni", "AsyncOmni": "async_omni"}

tell_of_modules()


def __getattr__(name: str) -> Any:
    if name in _ENTRY_POINTS:
        return getattr(import_module(f"omnimuse.compat.vllm_omni.entrypoints.{_ENTRY_POINTS[name]}"), name)
    raise no_name(__name__, name)
