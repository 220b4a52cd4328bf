"""What tests of compiled blocks share: whose blocks are compiled, and a compiler that only counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OWN_BLOCKS = ("", "dev", "2.1", "2.1-I2V", "5B", "3.5-medium")
"""The other kinds of checkpoints have the blocks of one of these."""


class Counter:
    """A backend that leaves the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward
