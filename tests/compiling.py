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
from omnimuse.layers.stack import Block, BlockStack, StackRunner
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.parallel.sequence import SequenceRunner
from omnimuse.parallel.shard import ShardRunner
from omnimuse.worker.compiler import prepare

AROUND = StepCache | LayerwiseOffload | ShardRunner | SequenceRunner
"""Runners that have another one run blocks."""


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
            runner = innermost(stack)
            if isinstance(runner, CompiledRunner):  # others run as they are
                set_innermost(stack, counted(stack.blocks(), runner, backend(name)))


def innermost(stack: BlockStack) -> StackRunner:
    """What runs the stack's blocks, however many runners are around it."""
    runner = stack.runner
    while isinstance(runner, AROUND):
        runner = runner.inner
    return runner


def set_innermost(stack: BlockStack, inner: StackRunner) -> None:
    """Have `inner` run the stack's blocks, within what is around what did."""
    if not isinstance(around := stack.runner, AROUND):
        stack.runner = inner
        return
    while isinstance(around.inner, AROUND):
        around = around.inner
    around.inner = inner


def counted(blocks: Sequence[Block[Any]], runner: CompiledRunner, backend: Counter) -> CompiledRunner:
    """The same runner with another compiler."""
    return CompiledRunner(blocks, backend, runner.changed, within=runner.within)
