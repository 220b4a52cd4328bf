"""The spec of a checkpoint whose pipeline is composed: from its class, its configurations and itself. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from omnimuse.compat.composed.discover import CONFIG, SAMPLING, Named, Package, package_of
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.spec import AT_WORK, MAX_FRAMES, MAX_PICTURES, MAX_SIDE, MAX_TOKENS, multiple
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.core.bounds import named
from omnimuse.core.errors import ModelError
from omnimuse.core.params import WORK, DiffusionParams, FamilyParams
from omnimuse.core.request import ALWAYS
from omnimuse.core.spec import Component, Configs, Foreign, Limits, Spec
from omnimuse.loader.checkpoint import Checkpoint

LIBRARY = "SGLang Diffusion's guide"
PIPELINE = "pipeline"
"""The component that is the composed pipeline, beside those that the checkpoint names."""

NETWORK = "denoiser"
"""The component through which networks are called in its loop."""

TASKS: Mapping[str, tuple[str, ...]] = {
    "T2I": ("text-to-image",),
    "I2I": ("image-to-image",),
    "TI2I": ("text-to-image", "image-to-image"),
    "T2V": ("text-to-video",),
    "I2V": ("image-to-video",),
    "TI2V": ("text-to-video", "image-to-video"),
}
"""What a configuration's `task_type` means."""

CHOSEN = ("num_inference_steps", "guidance_scale", "guidance_scale_2", "true_cfg_scale", "height", "width")
OF_VIDEOS = ("num_frames", "fps")


@dataclass(frozen=True)
class ComposedParams(FamilyParams):
    """Fields of the pipeline's own `SamplingParams`, and of the stock one, that our parameters have no name for."""

    sampling: Any = field(
        default_factory=dict,
        metadata={
            "type": "names and values",
            "default": {},
            "about": "fields of the pipeline's own sampling parameters",
        },
    )

    def __post_init__(self) -> None:
        named("extra.sampling", self.sampling)


@dataclass(frozen=True)
class Facts:
    """What the package of an entry says of its pipeline."""

    entry: Entry
    package: Package
    configs: Mapping[str, Named]

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The components that are read."""
        listed = self.package.values(self.entry.name, self.entry.module).get("_required_config_modules", ())
        return tuple(listed)

    @cached_property
    def sampling(self) -> Mapping[str, Any]:
        """The defaults that the package gives requests."""
        return self._values(SAMPLING)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The plain facts of its configuration."""
        return self._values(CONFIG)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it does: in the newer way of saying it, in the older, or told by what its stages are."""
        if found := TASKS.get(str(self.config.get("task_type"))):
            return found
        one = self.config.get("is_image_gen") or self.sampling.get("num_frames") == 1
        medium = "image" if one else "video"
        if any(self.config.get(f"{kind}_task") for kind in ("ti2v", "ti2i")):
            return (f"text-to-{medium}", f"image-to-{medium}")
        if self.config.get("i2v_task"):
            return (f"image-to-{medium}",)
        return (f"text-to-{medium}",)

    @property
    def own(self) -> tuple[str, ...]:
        """Fields of its sampling parameters that the stock ones do not have."""
        stock = {each.name for each in fields(SamplingParams)}
        return tuple(name for name in self.sampling if name not in stock)

    def _values(self, kind: str) -> Mapping[str, Any]:
        named = self.configs.get(kind)
        return self.package.values(named.name, named.module) if named is not None else {}


def facts_of(entry: Entry, checkpoint: Checkpoint) -> Facts:
    """What the package of `entry` says; ModelError where it does not say what a pipeline needs."""
    package = package_of(entry.package)
    paths = (entry.arch, str(checkpoint.folder), checkpoint.folder.name)
    found = Facts(entry, package, package.configs_of(entry.name, paths, entry.module))
    if CONFIG not in found.configs:
        raise ModelError(
            f"{entry.package} registers no configuration for {entry.name}: call register_configs in it with "
            "pipeline_config_cls and sampling_param_cls, and a detector that knows this checkpoint"
        )
    if not found.required:
        raise ModelError(f"{entry.name} lists no _required_config_modules; name the components that it reads")
    return found


def spec_of(entry: Entry, checkpoint: Checkpoint) -> Spec:
    """The spec of `checkpoint`, which the class in `entry` runs."""
    facts = facts_of(entry, checkpoint)
    known = checkpoint.components
    parts = {
        name: Component((known[name][1],) if name in known else (name,), optional=False) for name in facts.required
    }
    made = {name: Component((name,), optional=True, built=False) for name in (PIPELINE, NETWORK)}
    video = facts.tasks[0].endswith("video")
    return Spec(
        arch=entry.arch,
        family=entry.arch,
        summary=f"{entry.name} of {entry.module}",
        tasks=facts.tasks,
        components={**parts, **made},
        defaults=_defaults(facts, video),
        supported=_supported(facts, video),
        limits=lambda configs: _limits(facts, configs, video),
        extra=ComposedParams,
        foreign=Foreign(
            LIBRARY,
            notes(facts),
            lambda negative, params: _objection(facts, negative, params),
            door="omnimuse.compat.composed.door",
            shares=True,
        ),
    )


def notes(facts: Facts) -> dict[str, str]:
    """What is true of such a pipeline, each as "answer: reason"."""
    return {
        "runs through": f"{facts.entry.name}, which is composed as {LIBRARY} has it (docs/compat.md)",
        "attention": "ours, where its networks are built of the guide's layers; a library's network has its own",
        "shared forwards": "yes: of outputs whose network is given alike shapes, where the stock loop calls it",
        "progress, cancel, pause": "yes: between stages, and between the steps of the loop",
        "previews": "of pictures: unfinished latents, through all stages after the loop",
    }


def _defaults(facts: Facts, video: bool) -> DiffusionParams:
    said = {name: facts.sampling.get(name) for name in (*CHOSEN, *(OF_VIDEOS if video else ()))}
    stock = SamplingParams()
    if said["guidance_scale"] is None:
        said["guidance_scale"] = facts.config.get("embedded_cfg_scale", stock.guidance_scale)
    for name in ("num_inference_steps", *(OF_VIDEOS if video else ())):
        said[name] = getattr(stock, name) if said[name] is None else said[name]
    return DiffusionParams(**said, num_outputs_per_prompt=1, output_type="pil")


def _supported(facts: Facts, video: bool) -> frozenset[str]:
    found = {"guidance_scale", "true_cfg_scale", "loras"}
    ours = {each.name for each in fields(DiffusionParams)} - {"extra", "scheduler"} - WORK - ALWAYS
    found |= ours & set(facts.own)
    if video:
        found |= set(OF_VIDEOS)
    if "transformer_2" in facts.required:
        found |= {"guidance_scale_2", "boundary_ratio"}
    return frozenset(found)


def _limits(facts: Facts, configs: Configs, video: bool) -> Limits:
    pictures = any(task.startswith("image") for task in facts.tasks)
    texts = any(task.startswith("text") for task in facts.tasks)
    reads = "max_sequence_length" in facts.package.words()
    why = f"{facts.entry.name} never reads it; leave it out"
    return Limits(
        size_multiple=multiple(configs),
        max_side=MAX_SIDE,
        max_sequence_length=MAX_TOKENS,
        min_images=1 if pictures and not texts else 0,
        max_images=MAX_PICTURES if pictures else 0,
        refuses={name: why for name in ALWAYS & {"max_sequence_length"} if not reads} | dict(AT_WORK),
        max_frames=MAX_FRAMES if video else 1,
    )


def _objection(facts: Facts, negative: str | None, params: DiffusionParams) -> str | None:
    scale = params.guidance_scale if params.true_cfg_scale is None else params.true_cfg_scale
    if negative is not None and (scale or 1.0) <= 1.0:
        return f"negative_prompt means nothing at a scale of {scale or 1.0:g}; use a scale above 1, or leave it out"
    if params.output_type == "latent":
        return f"output_type='latent' does not fit {facts.entry.arch}, which gives finished outputs; use 'pil' or 'pt'"
    return None
