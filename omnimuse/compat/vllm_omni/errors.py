"""`vllm_omni.errors`."""

from __future__ import annotations

from omnimuse.core.errors import RequestError


class OmniClientError(RequestError):
    """A pipeline refuses what it was asked; whoever asked is told so."""
