"""`vllm_omni.model_executor.model_loader.weight_utils`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.loader.resolve import resolve


def download_weights_from_hf_specific(
    model_name_or_path: str, cache_dir: str | None, allow_patterns: Sequence[str], revision: str | None = None
) -> str:
    """The folder of a model, downloaded by our own resolver if it is not here: whole, and into the hub's own cache."""
    name = f"{model_name_or_path}@{revision}" if revision else model_name_or_path
    return str(resolve(name).path)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
