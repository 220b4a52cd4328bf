"""Compiling before anybody waits: an engine draws what makes it compile every form of its blocks, and is let go.

What it compiled stays on the disk (`worker/compiler.py` says where), so engines that start later find it.
`omnimuse warm` calls this.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnimuse.core.config import CompileConfig, Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.loras import Loras
from omnimuse.core.request import Ask, Door
from omnimuse.engine.local import finished, start
from omnimuse.worker.compiler import compiled, kept_in
from omnimuse.worker.warm_up import SMALL, warm_up_ask


@dataclass(frozen=True)
class Warmed:
    """What was compiled: `made` pieces of code were new, `found` ones lay in `folder` already, in `seconds`."""

    folder: Path
    made: int
    found: int
    seconds: float


def warm(config: Config, loras: Loras | None = None) -> Warmed:
    """Compile for the model, device and number format of `config`; takes minutes where nothing is there yet. With
    `loras` also what any adapters are worn by; RequestError where these cannot be.
    """
    if config.parallel.ranks > 1:
        raise ConfigError(
            f"warming for {config.parallel} cannot be: it draws in this process alone; the first requests of an engine "
            "of several ranks compile its blocks"
        )
    schedule = replace(config.schedule, company="always")
    began, before = time.perf_counter(), compiled()
    engine = start(replace(config, compile=CompileConfig("blocks"), schedule=schedule))
    try:
        for asks in (*_forms(engine.door), *(_forms(engine.door, loras) if loras else ())):
            finished(engine, *map(engine.make_request, asks))
    finally:
        engine.close()
    after = compiled()
    seconds = time.perf_counter() - began
    return Warmed(kept_in(), after.made - before.made, after.found - before.found, seconds)


def _forms(door: Door, loras: Loras | None = None) -> Iterator[list[Ask]]:
    """Requests that draw together: blocks have one form for one row, and another for any number of rows."""
    ask, guidance = warm_up_ask(SMALL, door), door.spec.guidance
    assert ask is not None
    ask = replace(ask, params=replace(ask.params, loras=loras))
    yield [ask]
    yield [ask] * 2
    free = () if guidance is None else [scale for scale in guidance.scales if scale not in door.limits.refuses]
    if guidance is not None and free and vars(door.limits.fixed).get(free[0]) is None:
        unguided: Any = dict.fromkeys(free, guidance.neutral)
        yield [replace(ask, params=replace(ask.params, **unguided))]
