"""What is known of a model before torch is imported or a weight is read.

Used by the build, and by front ends that check requests before anything heavy starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnimuse.core.config import Config
from omnimuse.core.request import Door
from omnimuse.core.spec import Component, Spec
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.resolve import Folder, resolve
from omnimuse.models import REGISTRY


@dataclass(frozen=True)
class Found:
    """A model that is there and complete: its folder, what it says of itself, its family, and its door."""

    config: Config
    folder: Folder
    checkpoint: Checkpoint
    spec: Spec
    door: Door


def find(config: Config) -> Found:
    """Resolve and check the model that `config` names; ModelError says what is wrong and what to do. No torch."""
    known = [model for spec in REGISTRY.specs() for variant in spec.variants for model in variant.ids]
    folder = resolve(config.model.model, known)
    checkpoint = Checkpoint(folder.path)
    spec = REGISTRY.spec(checkpoint.arch)
    required = {name: _classes(part, checkpoint, name) for name, part in spec.components.items()}
    optional = {name for name, part in spec.components.items() if part.optional}
    checkpoint.check(required, optional, weights=config.model.load == "weights")
    return Found(config, folder, checkpoint, spec, Door.of(spec, checkpoint.configs, folder.id))


def _classes(component: Component, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    """The classes a component may have; a spec that lists none takes whatever class the checkpoint names."""
    return component.classes or (checkpoint.components.get(name, ("", "any"))[1],)
