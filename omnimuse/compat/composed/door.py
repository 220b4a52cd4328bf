"""The door of composed pipelines, as the build knows it (`compat/door.py`). torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omnimuse.compat.composed.spec import LIBRARY, NETWORK, PIPELINE
from omnimuse.compat.contract.entries import ENTRIES
from omnimuse.compat.door import Made, Place
from omnimuse.core.config import Config, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.spec import Spec

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


def refuse_features(spec: Spec, config: Config) -> None:
    """ConfigError for what the translation cannot give a composed pipeline.

    Ranks may share the two branches of guidance, which the engine deals out, and weights, which its layers share.
    Blocks may come one at a time, where its network says what they are.
    """
    chosen = config.parallel
    taken = ParallelConfig(tensor=chosen.tensor, cfg=chosen.cfg)
    asked = {
        "cache": (config.cache.kind != "none", "step caches"),
        "quantize": (bool(config.quantize.schemes), "packed weights"),
        "offload": (config.offload.mode == "components", "parts that take turns (use offload layers)"),
        "compile": (config.compile.mode != "none", "compiled blocks"),
        "kernels": (config.kernels.mode == "triton", "fused kernels"),
        "parallel": (chosen != taken, "axes of ranks besides tensor and cfg"),
        "load": (config.model.load != "weights", "random weights"),
    }
    for name, (wanted, what) in asked.items():
        if wanted:
            raise ConfigError(
                f"{name} cannot be chosen for this model: its pipeline is composed as {LIBRARY} has it, and {what} "
                "are not translated yet (docs/compat.md). Leave it out"
            )


def preload(spec: Spec) -> None:
    """Import the module of the class."""
    ENTRIES[spec.arch].imported(ENTRIES[spec.arch].name)


def make(place: Place) -> Made:
    """The components that the class asks for, the pipeline composed of them, and what calls its networks."""
    from omnimuse.compat.composed.make import make as made
    from omnimuse.compat.composed.stages import Denoiser

    live, modules, passed = made(ENTRIES[place.spec.arch], place)
    return Made({**modules, PIPELINE: live, NETWORK: Denoiser(live)}, passed.choices, passed.closes)


def pipeline_of(spec: Spec, components: Mapping[str, Any]) -> type[Pipeline]:
    """One stage of ours for each of its own, in order."""
    from omnimuse.compat.composed.stages import pipeline_of as made

    return made(spec, components[PIPELINE])
