"""`vllm_omni.diffusion.model_loader.hub_prefetch`: a checkpoint's folder is whole before a pipeline is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from omnimuse.compat.contract.names import no_name


def prefetch_subfolders(
    model: str,
    subfolders: Iterable[str] = (),
    *,
    local_files_only: bool | None = None,
    revision: str | None = None,
    include_root_metadata: bool = True,
) -> None:
    """Nothing is left to fetch: the checkpoint was found, checked and downloaded before."""


def from_pretrained_with_prefetch(
    factory: Callable[..., Any],
    model: str,
    *,
    prefetch_list: Iterable[str] = (),
    max_attempts: int = 1,
    **from_pretrained_kwargs: Any,
) -> Any:
    """`factory(model, ...)`, where `factory` is some class's `from_pretrained`; one attempt, as all is here."""
    return factory(model, **from_pretrained_kwargs)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
