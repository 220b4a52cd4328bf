"""When a row may skip the middle blocks: one small policy per kind of step cache, and the limits they share.

A policy decides for one row from numbers alone; `stepcache.py` measures, runs and remembers. It knows no model: what is
fitted to one comes with its `Fits`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from omnimuse.cache.row import Row
from omnimuse.core.caches import CacheConfig, Fits
from omnimuse.core.errors import ConfigError
from omnimuse.core.plugins import CACHES, brought, loaded
from omnimuse.layers.stack import Memory

Watch = Literal["probe", "first", ""]
"""What is compared with what it was: the first block's probe, what the first blocks add, or nothing."""


@dataclass(frozen=True)
class Verdict:
    """Whether this step is skipped, and the row's sums with it."""

    skip: bool
    drift: float = 0.0
    growth: float = 1.0


COMPUTE = Verdict(skip=False)


@dataclass(frozen=True)
class Policy:
    """One kind of step cache with its settings, which are complete (`core.caches.completed`)."""

    choice: CacheConfig
    fits: Fits

    watches: ClassVar[Watch]
    always: ClassVar[bool]
    """Whether what is watched is compared with the step before, rather than with the last step that was computed."""

    def must(self, row: Row, memory: Memory) -> Verdict | None:
        """What there is no choice about, whatever is watched; None: look."""
        choice = self.choice
        masked = choice.mask[memory.at] == "0" if choice.mask else None
        if not row.added.terms or masked is False:
            return COMPUTE
        if choice.forced:
            return Verdict(skip=True)
        if masked is None and memory.step < self.warm_up(memory):
            return COMPUTE
        over = choice.most is not None and row.skipped >= choice.most
        return COMPUTE if over or (choice.in_a_row is not None and row.skips >= choice.in_a_row) else None

    def warm_up(self, memory: Memory) -> int:
        """How many steps come before the first that may be skipped."""
        return self.choice.warm_up or 0

    @abstractmethod
    def judge(self, row: Row, memory: Memory, change: float) -> Verdict:
        """Skip or not; `change` is the relative L1 change of what is watched, infinite if nothing can be compared."""

    @property
    def threshold(self) -> float:
        """The bound on drift or change."""
        assert self.choice.threshold is not None, "a complete choice has one"
        return self.choice.threshold


class TeaCache(Policy):
    """Skip while the drift of the first block's input, rescaled by the model's polynomial, stays below the threshold.

    "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108). The last step is
    computed, as there.
    """

    watches = "probe"
    always = True

    def must(self, row: Row, memory: Memory) -> Verdict | None:
        last = memory.step >= memory.steps - 1
        return COMPUTE if last and not self.choice.forced else super().must(row, memory)

    def judge(self, row: Row, memory: Memory, change: float) -> Verdict:
        drift = row.drift + self._rescaled(change)
        return Verdict(drift < self.threshold, drift)

    def _rescaled(self, change: float) -> float:
        """The polynomial by Horner's rule; a fit may dip below zero near zero, a drift cannot."""
        value = 0.0
        for coefficient in self.fits.tea.coefficients:
            value = value * change + coefficient
        return max(value, 0.0)


class DualBlockCache(Policy):
    """Skip while what the first blocks add is as it was when all were computed: the relative change is below the
    threshold. The last blocks are computed at every step and smooth over what was skipped.

    First-block cache (ParaAttention) with any number of blocks, as cache-dit's DBCache.
    """

    watches = "first"
    always = False

    def judge(self, row: Row, memory: Memory, change: float) -> Verdict:
        return Verdict(change < self.threshold)


class MagCache(Policy):
    """Skip while the error to expect, from how residuals of this model grow on average, stays below the threshold.

    "MagCache: Fast Video Generation with Magnitude-Aware Cache" (arXiv 2506.09045). It looks at nothing of the row.
    """

    watches = ""
    always = False

    def warm_up(self, memory: Memory) -> int:
        """A fifth of the steps, rounded to the nearest, if nothing else was chosen."""
        return int(0.2 * memory.steps + 0.5) if self.choice.warm_up is None else self.choice.warm_up

    def judge(self, row: Row, memory: Memory, change: float) -> Verdict:
        growth = row.growth * nearest(self.fits.ratios, memory.step, memory.steps)
        drift = row.drift + abs(1 - growth)
        return Verdict(drift < self.threshold, drift, growth)


def nearest(ratios: tuple[float, ...], step: int, steps: int) -> float:
    """The ratio of `step`, where ratios were measured over another number of steps than these (at least two)."""
    return ratios[round(step * (len(ratios) - 1) / (steps - 1))]


def policy_for(choice: CacheConfig, fits: Fits) -> Policy | None:
    """What carries out a complete `choice`; None where nothing is ever skipped. ConfigError for a package's that is
    no policy.
    """
    kinds: dict[str, type[Policy]] = {"teacache": TeaCache, "dbcache": DualBlockCache, "magcache": MagCache}
    if choice.off or choice.kind in kinds:
        return None if choice.off else kinds[choice.kind](choice, fits)
    point = brought(CACHES)[choice.kind]
    own = loaded(point)
    if not (isinstance(own, type) and issubclass(own, Policy)):
        raise ConfigError(f"{point.value}, the cache {choice.kind!r}, is no omnimuse.cache.policies.Policy; derive it")
    return own(choice, fits)
