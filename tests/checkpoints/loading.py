"""One component that a library implements, alone, by the steps that a build takes for all of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import (
    construct_library_network,
    kept_float32,
    library_class,
    library_rules,
    load_tokenizer,
)
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import load_weights, randomise


def library_component(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype = torch.float32, load: str = "weights", part: str = ""
) -> Any:
    """The component `name` on the CPU, or the module at `part` of it."""
    if not issubclass(library_class(checkpoint, name), nn.Module):
        return load_tokenizer(checkpoint, name, part)
    module = construct_library_network(checkpoint, name, part)
    policy = DtypePolicy(dtype, kept_float32(checkpoint, name, dtype))
    if load == "dummy":
        randomise(module, 0, name, policy, "cpu")
    else:
        load_weights(module, checkpoint.weights(name), library_rules(checkpoint, name, module, part), policy, "cpu")
    return module
