"""Our side: a request step by step through a family's pipeline, with a stack runner that takes notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Conditioning, Memory, StackRunner
from omnimuse.parity.decoding import AUTOENCODER, noting_decoder
from omnimuse.parity.notes import Evaluation, Trail
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.rows import forward
from omnimuse.pipeline.stage import Loop, Row
from omnimuse.pipeline.state import State


class NotingRunner:
    """Runs one block at a time through the runner that was there, and notes what each makes of its one row."""

    def __init__(self, inner: StackRunner) -> None:
        self.inner = inner
        self.noted: list[list[Tensor]] = []

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        for block in blocks:
            hidden = self.inner([block], hidden, cond)
            self.noted.append([row.float() for row in cond.layout.unpack(hidden)])
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)


@torch.inference_mode()
def our_trail(pipeline: Pipeline, request: Request) -> Trail:
    """The first output of `request`, with notes; every row has a forward of its own."""
    begun = perf_counter()
    [state, *_] = pipeline.states(request)
    loop = pipeline.come_to(Denoise, state)
    schedule = state.working["schedule"]
    trail = Trail(_texts(state, loop), list(schedule.timesteps))
    while pipeline.stage_of(state) is loop:
        evaluations = [_evaluate(pipeline, row) for row in pipeline.rows(loop, state)]
        pipeline.step_scheduler([state], [{each.branch: each.prediction for each in evaluations}])
        trail.steps.append(evaluations)
        trail.latents.append(state["latents"].float())
    trail.timesteps = trail.timesteps[-len(trail.steps) :]
    components = pipeline.ctx.components
    with noting_decoder(components.wherever(AUTOENCODER) if AUTOENCODER in components else None, trail.decoded):
        trail.result = pipeline.post_decode([state])[0].float()
    trail.seconds = perf_counter() - begun
    return trail


def _texts(state: State, loop: Loop) -> dict[str, Tensor]:
    slots = {name: state[name] for name in loop.reads if name in state}
    found = {name: slot for name, slot in slots.items() if isinstance(slot, Tensor) and name != "noise"}
    return {name: slot.float() for name, slot in found.items() if slot.is_floating_point()}


def _evaluate(pipeline: Pipeline, row: Row) -> Evaluation:
    network = pipeline.ctx.network(row.network)
    assert isinstance(network, Network)
    with _noting(network) as runners:
        [prediction] = forward(pipeline.ctx, [row])
    blocks = {name: runner.noted for name, runner in runners.items()}
    return Evaluation(row.network, row.branch, blocks, prediction)


@contextmanager
def _noting(network: Network) -> Iterator[dict[str, NotingRunner]]:
    """While this lasts, every stack of `network` takes notes."""
    stacks = network.stacks()
    runners = {name: NotingRunner(stack.runner) for name, stack in stacks.items()}
    for name, stack in stacks.items():
        stack.runner = runners[name]
    try:
        yield runners
    finally:
        for name, stack in stacks.items():
            stack.runner = runners[name].inner
