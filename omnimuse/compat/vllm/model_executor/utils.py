"""`vllm.model_executor.utils`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_name


def set_weight_attrs(weight: Tensor, weight_attrs: Mapping[str, Any] | None) -> None:
    """Give a parameter attributes, such as how it is loaded; ValueError for one that it has."""
    for name, value in (weight_attrs or {}).items():
        if name in vars(weight):
            raise ValueError(f"the weight has an attribute {name!r} already; set it once")
        setattr(weight, name, value)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
