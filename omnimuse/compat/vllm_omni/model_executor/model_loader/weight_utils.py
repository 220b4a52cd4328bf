"""`vllm_omni.model_executor.model_loader.weight_utils`."""

from __future__ import annotations

from collections.abc import Sequence

from omnimuse.loader.resolve import resolve


def download_weights_from_hf_specific(
    model_name_or_path: str, cache_dir: str | None, allow_patterns: Sequence[str], revision: str | None = None
) -> str:
    """The folder of a model, downloaded by our own resolver if it is not here: whole, and into the hub's own cache."""
    name = f"{model_name_or_path}@{revision}" if revision else model_name_or_path
    return str(resolve(name).path)
