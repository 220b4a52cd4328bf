"""Measures a model for its step caches: draws without one, fits, tries choices, and takes the one that saves most.

Called by `omnimuse calibrate`. What a choice saves is counted in blocks, and what it changes in finished latents, so
that the outcome does not depend on how busy the machine is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from torch import Tensor

from omnimuse.cache.observe import Observer, Seen, polynomial, ratios
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import PRESETS, Fits, TeaFit, cache_named
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.output import Done, Failed
from omnimuse.core.request import Ask, Door
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network

LEAST = 0.05
"""The share of blocks that a choice saves at least: deciding takes as long as some of them."""

REGULAR = 10
"""So many usual steps are a threshold that none of them reaches: what is skipped is a regular stride."""


@dataclass(frozen=True)
class Trial:
    """One choice: the share of all blocks that ran, and by how much latents differ from those without a cache.

    The difference is relative, in the 2-norm, the median over all that was drawn: a few tip over into another picture
    whatever is skipped, and a mean would tell how many did by chance.
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
    if why := unmeasured(engine.door):
        raise ConfigError(why)
    watched = {name: _watch(cache, blocks) for name, cache, blocks in step_caches(engine)}
    asks = [replace(ask, params=replace(ask.params, output_type="latent", cache="none")) for ask in asks]
    exact = [_draw(engine, ask) for ask in asks]
    whole, seen = _spent(watched), [each for observer in watched.values() for each in observer.seen]
    if not seen:
        raise RequestError("one step has nothing to compare with; use at least 2", "num_inference_steps")
    fits = fitted(seen)
    if len(own := {name: observer.seen for name, observer in watched.items() if observer.seen}) > 1:
        fits = replace(fits, experts=tuple((name, fitted(steps)) for name, steps in own.items()))
    fit(engine, fits)
    trials = list[Trial]()

    def tried(choice: str) -> None:
        drawn = [_draw(engine, replace(ask, params=replace(ask.params, cache=choice))) for ask in asks]
        apart = [float((new - old).norm() / old.norm()) for new, old in zip(drawn, exact, strict=True)]
        trials.append(Trial(choice, _spent(watched) / whole, median(apart)))
        told(trials[-1])

    for choice in candidates(seen):
        tried(choice)
    fit(engine, fits := suited(fits, trials, difference))
    for preset in PRESETS:  # what they mean follows from the threshold that was found
        tried(preset)
    return Calibration(replace(fits, auto=best(trials, difference)), tuple(trials))


def fitted(seen: Sequence[Seen]) -> Fits:
    """The polynomial and the ratios that suit what was seen."""
    return Fits(TeaFit(polynomial(seen)), ratios(seen))


def unmeasured(door: Door) -> str:
    """Why a model is not measured; empty if it can be."""
    if door.spec.library:
        return (
            f"its pipeline is that of {door.spec.library}, and only families of ours are measured; 'dbcache' needs no "
            "measurement, and 'teacache' goes by an extractor, where there is one for its network (docs/caches.md)"
        )
    if door.spec.by_token and not door.limits.draws:
        return "it makes one token after the other, and no step is like the one before"
    return ""


def candidates(seen: Sequence[Seen]) -> list[str]:
    """The choices that are tried, from numbers of steps and changes that were seen."""
    steps = max(each.steps for each in seen)
    warm_up = max(1, min(4, steps // 5))
    usual = mean(each.added for each in seen)  # what one skipped step is rescaled to, on average
    apart = median(abs(1 - each.growth) for each in seen)  # n skipped steps err by 1 + ... + n of these
    first = [
        f"dbcache,threshold={threshold},warm_up={warm_up},order={order}"
        for threshold in (0.04, 0.08, 0.12, 0.24)
        for order in (0, 1)
    ]
    tea = [f"teacache,threshold={_round(share * usual)}" for share in (0.8, 1.2, 2.2)]
    strides = dict.fromkeys(preset.in_a_row for preset in PRESETS.values())
    regular = [f"teacache,threshold={_round(REGULAR * usual)},in_a_row={most}" for most in strides]
    mag = [f"magcache,threshold={_round(share * apart)},warm_up={warm_up}" for share in (2, 4.5, 8)]
    return [*first, *tea, *regular, *mag]


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def suited(fits: Fits, trials: Sequence[Trial], difference: float) -> Fits:
    """`fits` with the threshold of every kind that was tried: the highest with which no trial changes more than
    `difference`, or else the lowest. Trials that bound how many steps are skipped in a row tell nothing of it, nor do
    those of a kind that skipped nothing at all.
    """
    found = {}
    for kind, of in by_threshold(trials).items():
        if any(trial.work < 1 for each in of.values() for trial in each):
            within = [threshold for threshold, each in of.items() if all(one.difference <= difference for one in each)]
            found[kind] = max(within, default=min(of))
    tea = replace(fits.tea, threshold=found.get("teacache", fits.tea.threshold))
    return replace(
        fits, tea=tea, dbcache=found.get("dbcache", fits.dbcache), magcache=found.get("magcache", fits.magcache)
    )


def by_threshold(trials: Sequence[Trial]) -> dict[str, dict[float, list[Trial]]]:
    """The trials that tell of a threshold, by their kind and by that."""
    found: dict[str, dict[float, list[Trial]]] = {}
    for trial in trials:
        choice = cache_named(trial.choice)
        if choice.in_a_row is None:
            found.setdefault(choice.kind, {}).setdefault(choice.threshold or 0.0, []).append(trial)
    return found


def best(trials: Sequence[Trial], difference: float) -> str:
    """The choice that runs the fewest blocks of those that change little enough and save `LEAST`; "none" if there is
    none.
    """
    good = [trial for trial in trials if trial.difference <= difference and trial.work <= 1 - LEAST]
    return min(good, key=lambda trial: (trial.work, trial.difference)).choice if good else "none"


def fit(engine: Engine, fits: Fits) -> None:
    """From now on `fits` are what `engine` knows of its model."""
    engine.door = replace(engine.door, fits=replace(fits, blocks=engine.door.fits.blocks))
    for name, cache, _ in step_caches(engine):
        cache.fits = fits.of(name)


def step_caches(engine: Engine) -> Iterator[tuple[str, StepCache, int]]:
    """The step cache of every network, by its name, and how many blocks it is around."""
    components = engine.runner.pipeline.ctx.components
    for name in components:
        component = components.wherever(name)
        if not isinstance(component, Network):
            continue
        stack = component.last_stack()
        if isinstance(stack.runner, StepCache):  # not where it writes one token after the other
            yield name, stack.runner, len(stack.blocks())


def _watch(cache: StepCache, blocks: int) -> Observer:
    """An observer that is put inside a step cache."""
    cache.inner = observer = Observer(cache.inner, blocks)
    return observer


def _spent(watched: dict[str, Observer]) -> int:
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
                for medium, latents in event.result.tensors.items():
                    if medium != "text":
                        found: Tensor = latents
                        return found
                raise RequestError(
                    f"the answer to {request.prompt!r:.80} asks for no picture; say what to draw", "prompt"
                )
