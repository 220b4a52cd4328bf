"""The build passes of step caches: whether the one that was chosen can be, and a runner around the last stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import completed, too_few
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


def check_cache(under: Build) -> None:
    """ConfigError for a step cache that goes by what is not known of this model, or that leaves no block to skip."""
    if under.found.spec.library:
        return
    chosen = under.found.config.cache
    choice = completed(chosen, under.found.door.fits)
    for network in under.drawing.values():
        if why := too_few(choice, len(network.last_stack().blocks())):
            raise ConfigError(why)
    if choice != chosen:
        under.choices.append(Choice("step cache", chosen.kind, str(choice), f"what {chosen} means with this model"))


def step_cache(under: Build) -> None:
    """A step cache around the last stack of each network, where most of the time goes: requests may choose one."""
    choice, fits = under.found.config.cache, under.found.door.fits
    for name, network in under.drawing.items():
        stack = network.last_stack()
        stack.runner = StepCache(choice, fits.of(name), stack.runner)
