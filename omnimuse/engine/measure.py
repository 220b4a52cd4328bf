"""What one request takes, stage by stage, as it is measured: `omnimuse explain --measure` tells it.

The model is loaded. A request that is large is foretold by two small ones, as the engine does where it might not fit
(`foretelling.py`); any other is made itself, in as few steps as there can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial

from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.request import Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.worker.explain import explain
from omnimuse.worker.place import most_allocated
from omnimuse.worker.warm_up import NONE, warm_up_ask

FORETOLD, MADE = "foretold by two small ones, which were made", "as torch allocated when it was made"


def told(config: Config, wanted: str | None) -> list[Choice]:
    """Everything an engine would choose; and what a request takes, if one of some size is to be measured."""
    return [*explain(config), *(measure(config, wanted) if wanted else ())]


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
        request = engine.make_request(ask)
        return list(_rows(engine, request, *_taken(engine, request)))


def _taken(engine: Engine, request: Request) -> tuple[Mapping[str, int], str]:
    """The bytes by label of stage, nothing where nobody tells; and how that is known."""
    known = engine.foretelling
    if known.can_learn(request):
        known.learn(request)
        return known.by_stage(request), FORETOLD
    make = partial(engine.alone, request)
    make()  # texts are read once; what libraries make with it does not count
    return most_allocated(engine.runner.pipeline.ctx.device, make) or {}, MADE


def _rows(engine: Engine, request: Request, taken: Mapping[str, int], how: str) -> Iterator[Choice]:
    room = engine.space.room
    beside = "beside the weights" if room is None else f"beside the weights, of which there are {told_bytes(room)}"
    yield Choice("request", "size", engine.foretelling.extent.told(request), "as it was asked to be measured")
    for stage, size in taken.items():
        if size:  # one whose text was read before takes nothing
            yield Choice("request", stage, told_bytes(size), how)
    most = told_bytes(max(taken.values())) if taken else "unknown"
    yield Choice("request", "at most", most, beside if taken else "nobody tells what this device has for tensors")
