"""Measures a model for its step caches: draws without one, fits, tries choices, and takes the one that saves most.

Called by `omnimuse calibrate`. What a choice saves is counted in blocks, and what it changes in finished latents, so
that the outcome does not depend on how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from torch import Tensor

from omnimuse.cache.observe import Observer, Seen, polynomial, ratios
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import Fits, TeaFit, cache_named
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.output import Done, Failed
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network


@dataclass(frozen=True)
class Trial:
    """One choice: the share of all blocks that ran, and by how much latents differ from those without a cache.

    The difference is relative, in the 2-norm, the mean over all that was drawn.
    """

    choice: str
    work: float
    difference: float


@dataclass(frozen=True)
class Calibration:
    """What was found: the fits, `auto` among them, and every trial."""

    fits: Fits
    trials: tuple[Trial, ...]


def calibrate(
    engine: Engine, asks: Sequence[Ask], difference: float, told: Callable[[Trial], object] = lambda trial: None
) -> Calibration:
    """Measure the model of `engine` with `asks`; no choice that changes more than `difference` is taken.

    The engine is for nothing else: its caches are left fitted. `told` receives every trial when it is made.
    """
    if engine.door.spec.library:
        raise ConfigError("a pipeline that a library runs has no step cache of ours; there is nothing to calibrate")
    watched = dict(_watched(engine))
    if not watched:
        raise ConfigError(
            "this model makes one token after the other, and no step is like the one before: nothing can be measured"
        )
    asks = [replace(ask, params=replace(ask.params, output_type="latent", cache="none")) for ask in asks]
    exact = [_draw(engine, ask) for ask in asks]
    whole, seen = _spent(watched), [each for observer in watched.values() for each in observer.seen]
    if not seen:
        raise RequestError("one step has nothing to compare with; use at least 2", "num_inference_steps")
    fits = Fits(TeaFit(polynomial(seen)), ratios(seen))
    _fit(engine, watched, fits)
    trials = []
    for choice in candidates(fits, seen):
        drawn = [_draw(engine, replace(ask, params=replace(ask.params, cache=choice))) for ask in asks]
        apart = [float((new - old).norm() / old.norm()) for new, old in zip(drawn, exact, strict=True)]
        trials.append(Trial(choice, _spent(watched) / whole, mean(apart)))
        told(trials[-1])
    return Calibration(chosen(fits, trials, difference), tuple(trials))


def candidates(fits: Fits, seen: Sequence[Seen]) -> list[str]:
    """The choices that are tried, from numbers of steps and changes that were seen."""
    steps = max(each.steps for each in seen)
    warm_up = max(1, steps // 5)
    usual = mean(each.added for each in seen)  # what one skipped step is rescaled to, on average
    first = [
        f"dbcache,threshold={threshold},warm_up={warm_up},in_a_row={in_a_row},order={order}"
        for threshold, in_a_row in ((0.08, 1), (0.16, 2), (0.3, 3))
        for order in (0, 1)
    ]
    tea = [f"teacache,threshold={float(f'{share * usual:.3g}')}" for share in (1.2, 2.2, 3.2)]
    mag = [f"magcache,threshold={threshold},warm_up={warm_up}" for threshold in (0.03, 0.06, 0.12)]
    return [*first, *tea, *mag]


def chosen(fits: Fits, trials: Sequence[Trial], difference: float) -> Fits:
    """`fits` with the choice that runs the fewest blocks of those that change little enough ("none" if none does), and
    with TeaCache's threshold chosen in the same way, or the least that was tried.
    """
    good = [trial for trial in trials if trial.difference <= difference and trial.work < 1]
    tea = [trial for trial in trials if cache_named(trial.choice).kind == "teacache"]
    best = min(good, key=lambda trial: (trial.work, trial.difference)).choice if good else "none"
    thresholds = [cache_named(trial.choice).threshold or 0.0 for trial in tea]
    suited = [threshold for threshold, trial in zip(thresholds, tea, strict=True) if trial in good]
    return replace(fits, tea=replace(fits.tea, threshold=max(suited, default=min(thresholds))), auto=best)


def _watched(engine: Engine) -> Iterator[tuple[StepCache, Observer]]:
    """The step cache of every network, and an observer that is put inside it."""
    components = engine.runner.pipeline.ctx.components
    for component in map(components.wherever, components):
        if not isinstance(component, Network):
            continue
        stack = list(component.stacks().values())[-1]
        if not isinstance(stack.runner, StepCache):  # it writes one token after the other
            continue
        stack.runner.inner = observer = Observer(stack.runner.inner, len(stack.blocks()))
        yield stack.runner, observer


def _fit(engine: Engine, watched: dict[StepCache, Observer], fits: Fits) -> None:
    engine.door = replace(engine.door, fits=fits)
    for cache in watched:
        cache.fits = fits


def _spent(watched: dict[StepCache, Observer]) -> int:
    """The blocks that ran since the last call."""
    total = sum(observer.work for observer in watched.values())
    for observer in watched.values():
        observer.work = 0
    return total


def _draw(engine: Engine, ask: Ask) -> Tensor:
    """The finished latents of one request, alone."""
    request = engine.make_request(ask)
    engine.submit(request)
    while True:
        for event in engine.tick():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                return event.result.output
