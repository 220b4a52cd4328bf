"""`vllm_omni.errors`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import RequestError


class OmniClientError(RequestError):
    """A pipeline refuses what it was asked; whoever asked is told so."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
