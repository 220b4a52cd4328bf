"""What one request takes, stage by stage, as it is measured: `omnimuse explain --measure` tells it.

The model is loaded. A request that is large is foretold by two small ones, as the engine does where it might not fit
(`foretelling.py`); any other is made itself, in as few steps as there can be, or as fill a step cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

from omnimuse.core.amounts import told_bytes
from omnimuse.core.caches import OFF
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Failed
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.worker.explain import explain
from omnimuse.worker.place import most_allocated, tells
from omnimuse.worker.warm_up import NONE, warm_up_ask

FORETOLD, MADE = "foretold by two small ones, which were made", "as torch allocated when it was made"


def told(config: Config, wanted: str | None) -> list[Choice]:
    """Everything an engine would choose; and what a request takes, if one of some size is to be measured."""
    return [*explain(config), *(measure(config, wanted) if wanted is not None else ())]


def measure(config: Config, wanted: str) -> list[Choice]:
    """The bytes that a request of the size `wanted` (as a warm-up names it) takes beside the weights. ConfigError for a
    model that is spread over processes, and for a size that it does not make.
    """
    if config.parallel.ranks > 1 or config.deploy.pools:
        raise ConfigError("a request is measured in this process alone; leave the ranks and pools out")
    with closing(start(config)) as engine:
        ask = warm_up_ask(wanted, engine.door, "--measure")
        if ask is None:
            raise ConfigError(f"--measure {NONE} measures nothing; use small, default, or a size as WxH or WxHxFRAMES")
        return list(_rows(engine, _filled(engine, ask)))


def _filled(engine: Engine, ask: Ask) -> Request:
    """What is asked for in as many steps as have the step cache of all who choose none remember what it does."""
    extent, params, fixed = engine.foretelling.extent, ask.params, engine.door.limits.fixed.num_inference_steps
    usual = extent.usual
    if not usual.filling or not isinstance(params, DiffusionParams):
        return engine.make_request(ask)
    steps = fixed or max(params.num_inference_steps or 1, extent.filling(usual))
    anyhow = replace(engine.door, cache=OFF)  # what masks are drawn for does not count
    made = anyhow.make_request(replace(ask, params=replace(params, num_inference_steps=steps)), engine.clock(), 0)
    return replace(made, params=replace(made.params, cache=str(usual.computed(steps))))  # not every door lets one in


def _rows(engine: Engine, request: Request) -> Iterator[Choice]:
    known, space = engine.foretelling, engine.space
    yield Choice("request", "size", known.extent.told(request), "as it was asked to be measured")
    if known.can_learn(request):
        known.learn(request)
    taken: Mapping[str, int] = known.by_stage(request)
    how, foretold = FORETOLD, known.takes(request, space.coming)
    if not taken:
        taken, how = _made(engine, request), MADE
    for stage, size in taken.items():
        if size:  # one whose text was read before takes nothing
            yield Choice("request", stage, told_bytes(size), how)
    most = max(*taken.values(), foretold + space.coming if foretold else 0) if taken else None
    there = "" if space.room is None else f", of which there are {told_bytes(space.room + space.coming)}"
    why = f"beside the weights that stay{there}" if taken else _untold(engine)
    yield Choice("request", "at most", "unknown" if most is None else told_bytes(most), why)


def _untold(engine: Engine) -> str:
    """Why there is no figure."""
    if tells(engine.runner.pipeline.ctx.device) is None:
        return "nobody tells what this device has for tensors"
    return "it cannot be told just now, for what the log says"


def _made(engine: Engine, request: Request) -> Mapping[str, int]:
    """The bytes by label of stage while it is made; nothing where nobody tells. What it fails with is raised."""

    def make() -> None:
        last = engine.alone(request)[-1]
        if isinstance(last, Failed):
            raise last.error

    make()  # texts are read once; what libraries make with it does not count
    return most_allocated(engine.runner.pipeline.ctx.device, make) or {}
