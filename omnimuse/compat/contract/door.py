"""The door of the contract, as the build knows it (`compat/door.py`). torch is imported where a function needs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omnimuse.compat.contract.entries import ENTRIES
from omnimuse.compat.contract.source import read_class
from omnimuse.compat.contract.spec import NETWORK, PIPELINE
from omnimuse.compat.door import Made, Place
from omnimuse.core.config import Config, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.spec import Spec

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


def refuse_features(spec: Spec, config: Config) -> None:
    """ConfigError for what the translation cannot give a pipeline of the contract.

    Ranks may share weights, which its layers do themselves, and branches where it calls its own loop.
    """
    assert spec.foreign is not None
    branches = 1 if spec.foreign.shares else config.parallel.cfg
    taken = ParallelConfig(tensor=config.parallel.tensor, cfg=branches)
    if taken.ranks > 1:
        taken = replace(taken, wait=config.parallel.wait)
    asked = {
        "cache": (config.cache.kind != "none", "step caches"),
        "quantize": (bool(config.quantize.schemes), "packed weights"),
        "offload": (config.offload.mode != "none", "offload"),
        "compile": (config.compile.mode != "none", "compiled blocks"),
        "kernels": (config.kernels.mode == "triton", "fused kernels"),
        "parallel": (config.parallel != taken, f"axes other than those of {taken}"),
        "load": (config.model.load != "weights", "random weights"),
    }
    for name, (wanted, what) in asked.items():
        if wanted:
            raise ConfigError(
                f"{name} cannot be chosen for this model: its pipeline is written to another engine's contract, and "
                f"{what} are not translated yet (docs/compat.md). Leave it out"
            )


def preload(spec: Spec) -> None:
    """Import the module of the class."""
    ENTRIES[spec.arch].imported(ENTRIES[spec.arch].name)


def make(place: Place) -> Made:
    """The whole pipeline, as one component, and its step as a network where it has one."""
    from omnimuse.compat.contract.make import make as made
    from omnimuse.compat.contract.steps import StepNetwork

    entry = ENTRIES[place.spec.arch]
    live, choices = made(entry, place)
    step = {NETWORK: StepNetwork(live)} if read_class(entry).steps else {}
    return Made({PIPELINE: live, **step}, choices)


def pipeline_of(spec: Spec) -> type[Pipeline]:
    """Its stages: one that is opaque, or a loop between two."""
    from omnimuse.compat.contract.pipeline import pipeline_of as made

    entry = ENTRIES[spec.arch]
    return made(spec, entry, read_class(entry))
