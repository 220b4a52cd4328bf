"""`vllm_omni.diffusion.utils.tf_utils`."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name


def get_transformer_config_kwargs(tf_model_config: Mapping[str, Any], model_class: type[nn.Module]) -> dict[str, Any]:
    """Of a transformer's configuration, what the constructor of `model_class` has arguments for."""
    known = signature(model_class.__init__).parameters
    return {name: value for name, value in tf_model_config.items() if name in known}


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
