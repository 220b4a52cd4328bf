"""`vllm_omni.platforms`: which kind of machine this is."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.machine import Platform
from omnimuse.compat.contract.names import no_name


def __getattr__(name: str) -> Any:
    if name == "current_omni_platform":
        return Platform()
    raise no_name(__name__, name)
