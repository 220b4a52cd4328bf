"""Compiled blocks are compiled a few times, however many rows there are, for every kind of block of every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block, Memory, PlainRunner
from omnimuse.pipeline.state import State
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.compiling import Counter
from tests.invariants.conftest import Subject, of

pytestmark = pytest.mark.crossed

MOST = 3
"""Graphs per kind of block, or per piece of one: for several rows, for one, and for one whose parts have times of their
own.
"""
ROWS = (2, *range(1, 13))
"""Two first: then there are as many rows as prompts, as spans of two pictures, as of one short video."""


class ByKind(PlainRunner):
    """Runs each kind of block compiled, with the counter of that kind."""

    def __init__(self, blocks: Sequence[Block[Any]], counters: dict[type[Block[Any]], Counter]) -> None:
        self.runners = {
            kind: CompiledRunner(
                [block for block in blocks if type(block) is kind], counters.setdefault(kind, Counter())
            )
            for kind in dict.fromkeys(map(type, blocks))
        }

    def __call__(
        self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Any, memories: Sequence[Memory] | None = None
    ) -> Tensor:
        for kind, run in groupby(blocks, type):  # kinds may take turns
            hidden = self.runners[kind](list(run), hidden, cond, memories)
        return hidden


def begun(engine: Engine, subject: Subject, wishes: Sequence[int]) -> list[State]:
    """States before their first step."""
    pipeline = engine.runner.pipeline
    asks = [subject.ask(wish, seed=seed) for seed, wish in enumerate(wishes)]
    states = [state for ask in asks for state in pipeline.states(engine.make_request(ask))]
    pipeline.prepare_encode(states)
    return states


@pytest.mark.shows("compile", "company")
@of((*FAMILIES, *ALLROUNDERS))
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_a_kind_of_block_is_compiled_at_most_three_times(subject: Subject, engine_with: Callable[..., Engine]) -> None:
    torch._dynamo.reset()
    engine = engine_with(schedule=ScheduleConfig(tier="fast", company="always"))
    pipeline, most = engine.runner.pipeline, max(ROWS)
    alike = [begun(engine, subject, [wish] * most) for wish in (1, 0, 2)]  # a video of one frame first
    ragged = begun(engine, subject, [i % 3 for i in range(most)])
    expected = pipeline.denoise_step(ragged)
    counters: dict[type[Block[Any]], Counter] = {}
    for network in pipeline.ctx.components.values():
        for stack in network.stacks().values() if isinstance(network, Network) else ():
            stack.runner = ByKind(stack.blocks(), counters)
    for rows in ROWS:
        for states in (*alike, ragged):
            found = pipeline.denoise_step(states[:rows])  # raises where a shared forward fails; nothing is tried again
    for plain, compiled in zip(expected, found, strict=True):
        for branch, prediction in plain.items():
            torch.testing.assert_close(compiled[branch], prediction, rtol=1e-4, atol=1e-5)
    assert counters
    most = {kind: MOST * max(1, len(kind.pieces)) for kind in counters}
    assert {kind.__name__: each.graphs for kind, each in counters.items() if each.graphs > most[kind]} == {}
