"""The door of composed pipelines, as the build knows it (`compat/door.py`). torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omnimuse.compat.composed.spec import LIBRARY, NETWORK, PIPELINE
from omnimuse.compat.contract.entries import ENTRIES
from omnimuse.compat.door import Made, Place
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.spec import Spec

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


def refuse_features(spec: Spec, config: Config) -> None:
    """ConfigError for what the translation cannot give a composed pipeline.

    Ranks may share the two branches of guidance, which the engine deals out, weights, which its layers share, and
    tokens, as its configuration says, and tiles.
    Where its network says what its blocks are, they may come one at a time, be compiled, and have a step cache. It
    has TeaCache by an extractor.
    """
    chosen, cached = config.parallel, config.cache.kind
    taken = replace(chosen, pipe=1, shard=1)
    asked = {
        f"cache={cached} with ulysses or ring": (
            cached == "dbcache" and chosen.sequence > 1,
            "every rank would decide by its own tokens; leave one of them out",
        ),
        "compile with shared weights or tokens": (
            config.compile.mode != "none" and chosen.tensor * chosen.sequence > 1,
            "compiled blocks have not been tried with what ranks send each other; leave one of them out",
        ),
        "kernels": (config.kernels.mode == "triton", "norms, rotations and gated sums are its own; leave it out"),
        "parallel": (
            chosen != taken,
            f"of {chosen}, its loop over blocks (pipe) and the blocks' weights (shard) are not ours to share; use "
            "tensor, cfg, ulysses or ring",
        ),
        "load": (config.model.load != "weights", "the library reads its weights itself; use load=weights"),
    }
    for name, (wanted, why) in asked.items():
        if wanted:
            raise ConfigError(
                f"{name} cannot be chosen for this model, whose pipeline is composed as {LIBRARY} has it: {why} "
                "(docs/compat.md)"
            )


def preload(spec: Spec) -> None:
    """Import the module of the class."""
    ENTRIES[spec.arch].imported(ENTRIES[spec.arch].name)


def make(place: Place) -> Made:
    """The components that the class asks for, the pipeline composed of them, and what calls its networks."""
    from omnimuse.compat.composed.make import make as made
    from omnimuse.compat.composed.stages import Denoiser

    found = made(ENTRIES[place.spec.arch], place)
    denoiser = Denoiser(found.live, place.config.cache.kind != "none")
    components = {**found.modules, PIPELINE: found.live, NETWORK: denoiser}
    return Made(components, found.passed.choices, found.passed.closes, found.wardrobe)


def pipeline_of(spec: Spec, components: Mapping[str, Any]) -> type[Pipeline]:
    """One stage of ours for each of its own, in order."""
    from omnimuse.compat.composed.stages import pipeline_of as made

    return made(spec, components[PIPELINE])
