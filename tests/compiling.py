"""What tests of compiled blocks share: a compiler that only counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnimuse.worker.compiler import prepare


class Counter:
    """A backend that leaves the graphs as they are, and counts them. What is compiled is traced as in an engine."""

    def __init__(self) -> None:
        prepare()
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward
