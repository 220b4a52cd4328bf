"""The door of diffusers, as the build knows it (`compat/door.py`). torch is imported where a function needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omnimuse.compat.diffusers import spec as features
from omnimuse.compat.diffusers.stepcache import CHOICE
from omnimuse.compat.door import Made, Place
from omnimuse.core.caches import OFF
from omnimuse.core.config import Config
from omnimuse.core.spec import Spec

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


def refuse_features(spec: Spec, config: Config) -> None:
    """ConfigError for a feature that works on our own networks only."""
    features.refuse_features(spec.arch, config)


def preload(spec: Spec) -> None:
    """Import the library's class."""
    from omnimuse.compat.diffusers.load import pipeline_class

    pipeline_class(spec.arch)


def make(place: Place) -> Made:
    """The components that the checkpoint names, read as the library reads them."""
    from omnimuse.compat.diffusers.read import read_components

    found = read_components(place.checkpoint, place.dtype, place.device, place.config.model.load)
    return Made(found | {CHOICE: place.config.cache})


def pipeline_of(spec: Spec, components: Mapping[str, Any]) -> type[Pipeline]:
    """Two loops over one call of the library's pipeline."""
    from omnimuse.compat.diffusers.pipeline import pipeline_of as made

    return made(spec, components.get(CHOICE, OFF))
