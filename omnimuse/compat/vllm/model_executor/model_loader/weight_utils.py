"""`vllm.model_executor.model_loader.weight_utils`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


def default_weight_loader(param: Tensor, loaded_weight: Tensor) -> None:
    """Fill `param` with `loaded_weight`, in its own number format; ModelError for one of another shape."""
    if param.shape != loaded_weight.shape and param.numel() == loaded_weight.numel() == 1:
        loaded_weight = loaded_weight.reshape(param.shape)
    if param.shape != loaded_weight.shape:
        raise ModelError(
            f"a parameter of shape {tuple(param.shape)} does not take a tensor of shape {tuple(loaded_weight.shape)}; "
            "the pipeline and its checkpoint do not fit, or `load_weights` gives it another name"
        )
    param.data.copy_(loaded_weight)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
