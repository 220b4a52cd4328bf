"""What a door for models from elsewhere gives to the build: one module for each, named by the spec that it makes.

The worker's build calls its functions in place of the passes over networks of ours. No torch is imported here, and
none by a module that is such a door until a function is called that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from omnimuse.core.config import Choice, Config
from omnimuse.core.spec import Spec
from omnimuse.loader.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

    from omnimuse.loader.sites import Linears
    from omnimuse.lora.adapters import Dress
    from omnimuse.lora.linear import Rack
    from omnimuse.parallel.mesh import Mesh
    from omnimuse.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Place:
    """A model that is to be made, and where: what it is, what was chosen, on which device, in which number format.

    The `rack` has what its networks wear while they compute.
    """

    spec: Spec
    checkpoint: Checkpoint
    config: Config
    device: torch.device
    dtype: torch.dtype
    mesh: Mesh
    rack: Rack


@dataclass(frozen=True)
class Wardrobe:
    """The layers that can wear adapters, by component; those of `main` draw. `dress` lets one wear them.

    All of it is computed by components of ours that it is `within`.
    """

    sites: Mapping[str, Linears]
    main: Sequence[str]
    dress: Dress
    within: frozenset[str]


@dataclass(frozen=True)
class Made:
    """The live components by name, what was chosen on the way, and what is to be closed with the engine.

    With a `wardrobe` requests may have adapters.
    """

    components: dict[str, Any]
    choices: list[Choice] = field(default_factory=list)
    closes: list[Callable[[], None]] = field(default_factory=list)
    wardrobe: Wardrobe | None = None


class ForeignDoor(Protocol):
    """What such a module has."""

    def refuse_features(self, spec: Spec, config: Config) -> None:
        """ConfigError for a feature that this door cannot give."""
        ...

    def preload(self, spec: Spec) -> None:
        """Import what a build will need: the longest part of starting a small model."""
        ...

    def make(self, place: Place) -> Made:
        """Every component of the model, with its weights."""
        ...

    def pipeline_of(self, spec: Spec, components: Mapping[str, Any]) -> type[Pipeline]:
        """The pipeline of a spec that this door made, over the components that it made."""
        ...


def door_of(spec: Spec) -> ForeignDoor:
    """The door that made `spec`."""
    assert spec.foreign is not None, f"{spec.arch} is a family of ours"
    return cast("ForeignDoor", import_module(spec.foreign.door))
