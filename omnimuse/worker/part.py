"""The part of a pipeline that a process of a pool runs, and the components that it needs for that.

A build pass: the networks of other pools are there as shapes without weights, so that what a stage or an adapter says
of them is the same in every pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.pools import parts_of
from omnimuse.core.spec import Spec
from omnimuse.worker.find import pipeline_for

if TYPE_CHECKING:
    from omnimuse.worker.build import Build

ELSEWHERE = -1
"""The rank that has what is in another pool."""


def parts(config: Config, spec: Spec) -> list[range]:
    """Which stages each pool of `config` runs; ConfigError where that cannot be. Imports torch."""
    if spec.library:
        raise ConfigError(
            f"pools cannot be: {spec.library} runs the pipeline of {spec.arch} as a whole; leave the deploy file out"
        )
    if config.parallel.ranks > 1 and not config.deploy.pool:
        raise ConfigError(
            f"which pool would have several ranks ({config.parallel})? Say in the deploy file, in the pool that has, "
            "`parallel: {tensor: 2}`, and nothing of it here"
        )
    from omnimuse.pipeline.numbered import numbered

    pipeline = pipeline_for(spec)
    formats = {pool.dtype or config.model.dtype for pool in config.deploy.pools}
    if not config.deploy.pool and len(formats) > 1 and not any(stage.computed for stage in pipeline.stages):
        why = f"{spec.arch} does not say which of its numbers networks make; use --dtype for all"
        raise config.deploy.wrong(f"pools cannot compute in {' and '.join(sorted(formats))}: {why}")
    try:
        return parts_of(config.deploy.pools, [[stage.name for stage in track] for track in numbered(pipeline)])
    except ConfigError as error:
        raise config.deploy.wrong(str(error)) from None


def part_of(config: Config, spec: Spec) -> range | None:
    """The stages of this process; None: all."""
    here = config.deploy.here
    return None if here is None else parts(config, spec)[config.deploy.pools.index(here)]


def keep_part(under: Build) -> None:
    """Of a pipeline in pools, only what the stages of this one use has weights."""
    part = part_of(under.found.config, under.found.spec)
    if part is None:
        return
    stages = pipeline_for(under.found.spec).stages[part.start : part.stop]
    used = {name for stage in stages for name in (*stage.uses, *stage.looks)}
    for name in under.modules.keys() - used:
        under.held.lent[name] = ELSEWHERE
    held = ", ".join(sorted(under.modules.keys() & used)) or "no network"
    names = ", ".join(stage.name for stage in stages)
    under.choices.append(Choice("pools", under.found.config.deploy.pool, held, f"its stages are {names}"))
