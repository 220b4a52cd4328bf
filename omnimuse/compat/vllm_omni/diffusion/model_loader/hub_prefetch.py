"""`vllm_omni.diffusion.model_loader.hub_prefetch`: a checkpoint's folder is whole before a pipeline is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnimuse.compat.contract.names import no_name


def prefetch_subfolders(model: str, subfolders: Sequence[str] = (), revision: str | None = None) -> None:
    """Nothing is left to fetch: the checkpoint was found, checked and downloaded before."""


def from_pretrained_with_prefetch(cls: Any, model: str, *args: Any, **kwargs: Any) -> Any:
    """`cls.from_pretrained(model, ...)`."""
    return cls.from_pretrained(model, *args, **kwargs)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
