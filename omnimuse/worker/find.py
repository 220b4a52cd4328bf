"""What is known of a model before torch is imported or a weight is read.

Used by the build, and by front ends that check requests before anything heavy starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from omnimuse.compat.composed.spec import spec_of as composed_spec_of
from omnimuse.compat.contract import entries
from omnimuse.compat.contract.spec import LIBRARY as CONTRACT
from omnimuse.compat.contract.spec import spec_of as contract_spec_of
from omnimuse.compat.diffusers.spec import spec_of
from omnimuse.compat.door import door_of
from omnimuse.compat.opening import filled, is_file, opened
from omnimuse.core.config import Config
from omnimuse.core.deadlines import classes
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.request import Door
from omnimuse.core.spec import Component, Recognised, Spec, Variant
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.eight_bits import SAID, eight_bits
from omnimuse.loader.files import AGAIN
from omnimuse.loader.fits import measured_fits
from omnimuse.loader.identity import TAUGHT, Taught, names_of, taught
from omnimuse.loader.resolve import Folder, resolve
from omnimuse.models import REGISTRY

if TYPE_CHECKING:
    from omnimuse.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Found:
    """A model that is there and complete: its folder, what it says of itself, its family, and its door.

    `recognised` says which published checkpoint it is taken for, `taught` what it was trained on, where it tells.
    """

    config: Config
    folder: Folder
    checkpoint: Checkpoint
    spec: Spec
    door: Door
    recognised: Recognised
    taught: Taught | None = None

    @property
    def networks(self) -> frozenset[str]:
        """The components that are networks of ours, of those that this checkpoint has."""
        ours = (name for name, component in self.spec.components.items() if component.network)
        return frozenset(ours) & self.checkpoint.configs.keys()

    @property
    def about_defaults(self) -> str:
        """Whose defaults these are, which, and why."""
        values = {"steps": self.door.defaults.num_inference_steps, "guidance": self.door.defaults.guidance_scale}
        told = ", ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
        width, height = self.door.defaults.width, self.door.defaults.height
        lasts = self.door.defaults.seconds
        size = f"{width}x{height}" if width and height else f"{lasts:.4g} s" if lasts else ""
        chosen = ", ".join(part for part in (told, size) if part) or "its own"
        about = f"defaults of {self.recognised.variant.name} ({chosen}): {self.recognised.why}"
        return about if self.recognised.sure else f"{about}; --defaults-of NAME takes those of another one"


def find(config: Config) -> Found:
    """Resolve and check the model that `config` names; ModelError says what is wrong and what to do. No torch."""
    known = [model for spec in REGISTRY.specs() for variant in spec.variants for model in variant.ids]
    model = config.model.model
    folder = opened(model, our_components()) if is_file(model) else resolve(model, known)
    for name, file in config.model.files.items():
        folder = filled(folder, name, file, our_components())
    checkpoint = Checkpoint(folder.path)
    spec = spec_for(checkpoint, config.model.plugins, config.contract.steps)
    if spec.library:
        door_of(spec).refuse_features(spec, config)
    elif config.contract.steps is False:
        raise ConfigError(
            f"contract steps=False cannot be: {spec.arch} is a family whose loop is the engine's; leave it out"
        )
    if config.contract.encoder is not None and spec.library != CONTRACT:
        raise ConfigError(
            f"auxiliary_text_encoder={config.contract.encoder!r} cannot be: {spec.arch} reads the encoders of its own "
            "checkpoint; leave it out"
        )
    if config.contract.coefficients and spec.library != CONTRACT:
        raise ConfigError(
            f"cache setting coefficients cannot be: those of {spec.arch} belong to the model, and `omnimuse calibrate "
            "MODEL` fits them; leave them out"
        )
    for name, part in spec.components.items():
        if part.inside in checkpoint.components and part.where(checkpoint.config(part.asks or part.inside)):
            checkpoint.divide(name, part.inside)
    checkpoint.only(spec.components)
    required = {name: _classes(part, checkpoint, name) for name, part in spec.components.items()}
    optional = {name for name, part in spec.components.items() if part.optional}
    checkpoint.check(required, optional, weights=config.model.load == "weights")
    if not spec.library:
        _refuse_packings_of_others(checkpoint)
    told = taught(checkpoint)
    recognised = _recognise(config, folder, checkpoint, spec, told)
    try:
        door = Door.of(spec, checkpoint.configs, recognised.variant)
    except (LookupError, TypeError, ValueError) as problem:  # what specs take for granted of their own checkpoints
        raise ModelError(
            f"the configurations in {folder.path} are not those of a {spec.arch} "
            f"({type(problem).__name__}: {problem}); {AGAIN}"
        ) from problem
    door = replace(door, deadlines=classes(config.schedule.deadlines))
    if "num_inference_steps" not in door.limits.refuses:  # else nobody knows here for how many steps a mask would be
        door = replace(door, cache=config.cache)
    if not spec.library:
        door = replace(door, fits=measured_fits(checkpoint, spec.fits))
    return Found(config, folder, checkpoint, spec, door, recognised, told)


def _refuse_packings_of_others(checkpoint: Checkpoint) -> None:
    """ModelError for a component whose weights were packed by a library in a way that is not read here."""
    for name, config in checkpoint.configs.items():
        if not isinstance(said := config.get(SAID), Mapping):
            continue
        how = str(said.get("quant_method", "a library"))
        try:
            eight_bits(said)
        except ModelError as problem:
            how = str(problem)
        raise ModelError(
            f"component {name!r} of {checkpoint.folder} was packed by {how}, whose weights are not read here; use the "
            f"checkpoint that it was made from with --quantize {name}=int4, or a GGUF file of the model "
            "(docs/quantization.md)"
        )


def our_components() -> dict[str, Mapping[str, Component]]:
    """The components of our families, by the name of their pipeline."""
    return {arch: spec.components for spec in REGISTRY.specs() for arch in (spec.arch, *spec.also)}


def _recognise(config: Config, folder: Folder, checkpoint: Checkpoint, spec: Spec, told: Taught | None) -> Recognised:
    """Whose defaults the model gets: as asked for, as it says itself, or as it is recognised."""
    if wanted := config.model.defaults_of:
        variant = Variant(spec.family, (), spec.defaults) if wanted == spec.family else spec.named(wanted)
        if variant is None:
            known = ", ".join([*(variant.name for variant in spec.variants), spec.family])
            raise ConfigError(
                f"--defaults-of {wanted} is no checkpoint of the family of {folder.id}; use one of {known}"
            )
        return Recognised(variant, "chosen with --defaults-of")
    if told is not None:
        own = Variant(folder.path.name, (), told.defaults.over(spec.defaults))
        return Recognised(own, f"{TAUGHT} in its folder says so")
    return spec.recognise(names_of(folder, checkpoint), checkpoint.configs)


def published_id(folder: Folder, checkpoint: Checkpoint) -> str:
    """The hub id of what one of our families takes a folder for; empty where none does, or where it says itself what it
    was taught.
    """
    if not REGISTRY.covers(checkpoint.arch) or taught(checkpoint) is not None:
        return ""
    return REGISTRY.spec(checkpoint.arch).recognise(names_of(folder, checkpoint), checkpoint.configs).id


def spec_for(checkpoint: Checkpoint, plugins: Sequence[str], steps: bool | None) -> Spec:
    """The spec of what runs `checkpoint`: a pipeline of one of `plugins` that was asked for, then a family of ours,
    then a pipeline that somebody registered, installed packages among them, then the library whose class the
    checkpoint names. `steps`: whether the engine owns the loop of one that was registered (None: where it can).
    """
    entries.load(plugins)
    if entry := entries.entry_of(checkpoint.arch, plugins):
        return _registered(entry, checkpoint, steps)
    if checkpoint.flat or REGISTRY.covers(checkpoint.arch):
        return REGISTRY.spec(checkpoint.arch)
    entries.load(entries.installed())
    if entry := entries.entry_of(checkpoint.arch):
        return _registered(entry, checkpoint, steps)
    return spec_of(checkpoint)


def _registered(entry: entries.Entry, checkpoint: Checkpoint, steps: bool | None) -> Spec:
    if not entry.package:
        return contract_spec_of(entry, checkpoint, steps)
    if steps is False:
        raise ConfigError(f"the loop of {entry.name}, which is composed of stages, is always the engine's; leave it so")
    return composed_spec_of(entry, checkpoint)


def pipeline_for(spec: Spec, components: Mapping[str, Any] = MappingProxyType({})) -> type[Pipeline]:
    """The pipeline that `spec` describes, over `components` where a library made them. Imports torch."""
    if not spec.library:
        return REGISTRY.pipeline(spec.arch)
    return door_of(spec).pipeline_of(spec, components)


def _classes(component: Component, checkpoint: Checkpoint, name: str) -> tuple[str, ...]:
    """The classes a component may have; a spec that lists none takes whatever class the checkpoint names."""
    return component.classes or (checkpoint.components.get(name, ("", "any"))[1],)
