"""Step caches of an engine: what they know of its model, how much they leave out while it draws, what they remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from omnimuse.cache.row import Row
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.output import Event
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Memory
from tests.checkpoints.wishes import Family

ENOUGH: Mapping[str, Any] = MappingProxyType({"num_inference_steps": 5, "strength": None})
"""Parameters of a request that has a step to skip, also where a picture stands in for the first two."""
EXPERTS: Mapping[str, Any] = MappingProxyType({**ENOUGH, "num_inference_steps": 6, "boundary_ratio": 0.93})
"""Where two experts draw, of which each has three of these steps, and one to skip."""


def enough(family: Family) -> Mapping[str, Any]:
    """Parameters with which every network of a family has a step to skip."""
    return EXPERTS if "A14B" in family.name else ENOUGH


def measured(engine: Engine) -> Engine:
    """The engine, of whose model it is known that residuals do not grow."""
    ratios = (1.0,)
    engine.door = replace(engine.door, fits=replace(engine.door.fits, ratios=ratios))
    for cache in caches(engine):
        cache.fits = replace(cache.fits, ratios=ratios)
    return engine


def caches(engine: Engine) -> list[StepCache]:
    components = engine.runner.pipeline.ctx.components
    networks = [part for name in components if isinstance(part := components.wherever(name), Network)]
    runners = [stack.runner for network in networks for stack in network.stacks().values()]
    return [runner for runner in runners if isinstance(runner, StepCache)]


@contextmanager
def counting(engine: Engine, network: str = "") -> Iterator[Counter[str]]:
    """How many evaluations, of one `network` or of all, are skipped of each output that `engine` draws meanwhile, by
    the name of its state.
    """
    memories, skipped, tick = dict[str, dict[tuple[str, str], Memory]](), Counter[str](), engine.tick

    def watched(brief: float = 0.0) -> list[Event]:
        events = tick(brief)
        for state in engine.runner.states.values():
            memories.setdefault(state.id, {}).update(state.memories)
        for name, each in memories.items():
            rows = [memory.data.get("stepcache") for (by, _), memory in each.items() if network in ("", by)]
            skipped[name] = sum(row.skipped for row in rows if isinstance(row, Row))
        return events

    with patch.object(engine, "tick", watched):
        yield skipped


def remembering(engine: Engine) -> int:
    """The bytes that step caches remember of all that are in progress."""
    memories = [memory for state in engine.runner.states.values() for memory in state.memories.values()]
    rows = [memory.data.get("stepcache") for memory in memories]
    return sum(row.nbytes for row in rows if isinstance(row, Row))
