"""The door of the contract, as the build knows it (`compat/door.py`). torch is imported where a function needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omnimuse.compat.contract.entries import ENTRIES
from omnimuse.compat.contract.spec import NETWORK, PIPELINE
from omnimuse.compat.door import Made, Place
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.spec import Spec

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


def refuse_features(spec: Spec, config: Config) -> None:
    """ConfigError for what cannot be given to a pipeline of the contract, with the reason."""
    assert spec.foreign is not None
    parallel, cached = config.parallel, config.cache.kind
    untold = cached == "dbcache" and not spec.foreign.shares
    untold_why = "its `forward` has the loop, and enablers are told of none; leave it out, or write the four methods"
    asked = {
        "offload=components with use_hsdp": (
            config.offload.mode == "components" and parallel.shard > 1,
            "parts that take turns are there whole; leave one of them out",
        ),
        "kernels": (config.kernels.mode == "triton", "norms, rotations and gated sums are its own"),
        "load": (config.model.load != "weights", "it reads its weights itself"),
        "parallel": (
            parallel.pipe > 1,
            f"of {parallel}, its loop over blocks is not ours to share (pipe)",
        ),
        f"cache={cached} beside several ranks": (
            untold and parallel.ranks > 1,
            "its `forward` has the loop, and a cache would decide on every rank by itself; leave one of them out",
        ),
        "enable_taylorseer": (untold and bool(config.cache.order), untold_why),
        f"cache mask={config.cache.mask}": (untold and bool(config.cache.mask), untold_why),
        f"cache={cached} with ulysses or ring": (
            cached == "dbcache" and parallel.sequence > 1,
            "every rank would decide by its own tokens; leave one of them out",
        ),
        "compile with shared weights or tokens": (
            config.compile.mode != "none" and parallel.tensor * parallel.sequence > 1,
            "compiled blocks have not been tried with what ranks send each other; leave one of them out",
        ),
    }
    for name, (wanted, why) in asked.items():
        if wanted:
            raise ConfigError(
                f"{name} cannot be chosen for this model, whose pipeline is written to another engine's contract: "
                f"{why} (docs/compat.md)"
            )


def preload(spec: Spec) -> None:
    """Import the module of the class."""
    ENTRIES[spec.arch].imported(ENTRIES[spec.arch].name)


def make(place: Place) -> Made:
    """The whole pipeline, as one component, and its step as a network where it has one."""
    from omnimuse.compat.contract.make import make as made
    from omnimuse.compat.contract.steps import StepNetwork

    entry = ENTRIES[place.spec.arch]
    live, passed, wearing = made(entry, place)
    assert place.spec.foreign is not None
    step = {NETWORK: StepNetwork(live, place.config.cache.kind != "none")} if place.spec.foreign.shares else {}
    return Made({PIPELINE: live, **step}, passed.choices, passed.closes, wearing)


def pipeline_of(spec: Spec, components: Mapping[str, Any]) -> type[Pipeline]:
    """Its stages: one that is opaque, or a loop between two."""
    from omnimuse.compat.contract.pipeline import pipeline_of as made

    return made(spec, ENTRIES[spec.arch].name)
