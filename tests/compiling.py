"""What tests of compiled blocks share: a compiler that only counts, and how an engine is given it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from omnimuse.cache.stepcache import StepCache
from omnimuse.engine.engine import Engine
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.worker.compiler import prepare


class Counter:
    """A backend that leaves the graphs as they are, and counts them. What is compiled is traced as in an engine."""

    def __init__(self) -> None:
        prepare()
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def compile_with(engine: Engine, backend: Counter) -> None:
    """Have the engine's compiled blocks made by `backend`."""
    compile_each(engine, lambda _: backend)


def compile_each(engine: Engine, backend: Callable[[str], Counter]) -> None:
    """The same, by a backend for each component."""
    components = engine.runner.pipeline.ctx.components
    for name in components:
        network = components.wherever(name)
        for stack in network.stacks().values() if isinstance(network, Network) else ():
            around, runner = None, stack.runner
            while isinstance(runner, StepCache | LayerwiseOffload):
                around, runner = runner, runner.inner
            if not isinstance(runner, CompiledRunner):
                continue  # it runs as it is
            if around is not None:
                around.inner = counted(stack.blocks(), runner, backend(name))
            else:
                stack.runner = counted(stack.blocks(), runner, backend(name))


def counted(blocks: Sequence[Block[Any]], runner: CompiledRunner, backend: Counter) -> CompiledRunner:
    """The same runner with another compiler."""
    return CompiledRunner(blocks, backend, runner.changed, within=runner.within)
