"""The spec of a checkpoint whose pipeline is written to the contract: from its class and the checkpoint. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.source import ClassSource, read_class
from omnimuse.core.bounds import named
from omnimuse.core.errors import ConfigError
from omnimuse.core.params import WORK, DiffusionParams, FamilyParams
from omnimuse.core.request import ALWAYS
from omnimuse.core.spec import Component, Configs, Foreign, Limits, SoundLimits, Spec
from omnimuse.loader.checkpoint import Checkpoint

LIBRARY = "the vLLM-Omni contract"
PIPELINE = "pipeline"
"""The component that is the whole pipeline, beside those that the checkpoint names."""

NETWORK = "step"
"""The component that takes its steps, where it gives them away."""

MAX_SIDE = 8192
MAX_TOKENS = 4096
MAX_FRAMES = 10_000
MAX_PICTURES = 16
USUAL_STEPS = 50
USUAL_FPS = 24.0

AT_WORK: Mapping[str, str] = {
    "cache": "one step cache goes around the blocks of all requests; choose it when the engine starts",
}
"""Why a request of such a pipeline has no choice of how its networks work."""

THEIRS: Mapping[str, tuple[str, ...]] = {"seconds": ("seconds", "audio_end_in_s", "audio_length"), "fps": ("fps",)}
"""What the contract calls parameters that are not called so here; any other has our name."""


@dataclass(frozen=True)
class ContractParams(FamilyParams):
    """What a pipeline finds in `sampling_params.extra_args`."""

    extra_args: Any = field(
        default_factory=dict,
        metadata={
            "type": "names and values",
            "default": {},
            "about": "what the pipeline finds in `sampling_params.extra_args`",
        },
    )

    def __post_init__(self) -> None:
        named("extra.extra_args", self.extra_args)


def spec_of(entry: Entry, checkpoint: Checkpoint, steps: bool | None = None) -> Spec:
    """The spec of `checkpoint`, which the class in `entry` runs; in `steps` of the engine's, or not (None: if it can).

    ConfigError where it is to be run in steps and has not the methods for it.
    """
    source = read_class(entry)
    if steps and not source.steps:
        raise ConfigError(
            f"step_execution=True cannot be: {entry.name} lacks {', '.join(source.lacking)}; write them or leave it out"
        )
    stepped = source.steps and steps is not False
    tasks, configs = entry.tasks or _tasks(entry, source), checkpoint.configs
    own = {name: Component((kind,), built=False) for name, (_, kind) in checkpoint.components.items()}
    made = {name: Component((name,), optional=True, built=False) for name in (PIPELINE, NETWORK)}
    medium = tasks[0].rpartition("-")[2]
    rate = _rate(configs) if medium == "audio" else 0
    return Spec(
        arch=entry.arch,
        family=entry.arch,
        summary=f"{entry.name} of {entry.module}",
        tasks=tasks,
        components={**own, **made},
        defaults=_defaults(medium),
        supported=frozenset(_read(source) - ALWAYS | {"loras"}),
        limits=lambda configs: _limits(entry, source, tasks, configs, rate),
        extra=ContractParams if source.reads("extra_args") else FamilyParams,
        foreign=Foreign(
            LIBRARY,
            notes(source, stepped),
            lambda negative, params: _objection(entry, source, negative, params),
            door="omnimuse.compat.contract.door",
            shares=stepped,
        ),
    )


def notes(source: ClassSource, stepped: bool) -> dict[str, str]:
    """What is true of such a pipeline, each as "answer: reason"."""
    how = "yes: between steps" if stepped else "no: its `forward` is one opaque stage"
    return {
        "runs through": f"{source.name}, which is written to {LIBRARY} (docs/compat.md)",
        "attention": "ours: every site is bound to a backend, by its role",
        "shared forwards": "yes: of requests alike in shapes and guidance" if stepped else how,
        "progress, cancel, pause": how,
        "previews": "yes: unfinished latents, decoded whole" if stepped else how,
    }


def _tasks(entry: Entry, source: ClassSource) -> tuple[str, ...]:
    names = (("Video", "video"), ("Audio", "audio"))
    medium = next((medium for word, medium in names if word in f"{entry.arch} {entry.name}"), "image")
    medium = "audio" if source.gives_sounds else medium
    pictures = source.takes_pictures or bool(entry.pre_process)
    return (f"text-to-{medium}", *((f"image-to-{medium}",) if pictures else ()))


def _defaults(medium: str) -> DiffusionParams:
    fps = USUAL_FPS if medium == "video" else None
    return DiffusionParams(num_inference_steps=USUAL_STEPS, fps=fps, num_outputs_per_prompt=1, output_type="pil")


def _read(source: ClassSource) -> set[str]:
    """Which of our parameters stand in the pipeline's files, under the contract's names."""
    names = {each.name for each in fields(DiffusionParams)} - {"extra", "scheduler"} - WORK
    return {name for name in names if any(map(source.reads, THEIRS.get(name, (name,))))}


def _limits(entry: Entry, source: ClassSource, tasks: tuple[str, ...], configs: Configs, rate: int) -> Limits:
    pictures = any(task.startswith("image") for task in tasks)
    always = ALWAYS - _read(source) - {"seed", "num_outputs_per_prompt", "output_type"}
    return Limits(
        size_multiple=entry.size_multiple or multiple(configs),
        max_side=MAX_SIDE,
        max_sequence_length=MAX_TOKENS,
        min_images=1 if pictures and not any(task.startswith("text") for task in tasks) else 0,
        max_images=MAX_PICTURES if pictures else 0,
        refuses=dict.fromkeys(always, f"{source.name} never reads it; leave it out") | dict(AT_WORK),
        max_frames=MAX_FRAMES if source.reads("num_frames") else 1,
        sound=SoundLimits(rate, max_inputs=int(source.takes_sounds)) if rate else None,
    )


def multiple(configs: Configs) -> int:
    """Two cells of its autoencoder, which most networks take as one patch."""
    channels = configs.get("vae", {}).get("block_out_channels")
    return 2 * 2 ** (len(channels) - 1) if isinstance(channels, list | tuple) else 16


def _rate(configs: Configs) -> int:
    """Samples of sound a second, where a configuration says; else what most models have."""
    said = [
        value
        for config in configs.values()
        for name, value in config.items()
        if name in ("sampling_rate", "sample_rate") and isinstance(value, int)
    ]
    return said[0] if said else 44_100


def _objection(entry: Entry, source: ClassSource, negative: str | None, params: DiffusionParams) -> str | None:
    if negative is not None and not source.reads("negative_prompt"):
        return f"negative_prompt means nothing to {source.name}, which never reads it; leave it out"
    if params.output_type == "latent":
        return f"output_type='latent' does not fit {entry.arch}, which gives finished outputs; use 'pil' or 'pt'"
    return None
