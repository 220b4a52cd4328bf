"""The spec of a checkpoint whose pipeline no family covers: made from the library's class and the checkpoint. No torch.

Says what the pipeline takes and gives, and honestly what our engine cannot do with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from omnimuse.compat.diffusers.params import (
    MANY,
    core_parameters,
    extra_type,
    picture_parameters,
)
from omnimuse.compat.diffusers.sizes import default_side, size_multiple
from omnimuse.compat.diffusers.source import PipelineSource, read_source
from omnimuse.compat.diffusers.stepcache import FITS, check, obstacle
from omnimuse.core.config import Config
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import ALWAYS
from omnimuse.core.spec import Component, Configs, Foreign, Limits, SoundLimits, Spec
from omnimuse.loader.checkpoint import Checkpoint

LIBRARY = "diffusers"
MAX_SIDE = 8192
MAX_TOKENS = 4096
MAX_FRAMES = 10_000
USUAL_FPS = 24.0
"""Frames per second where neither the class nor its example says how fast its videos are."""

_EXAMPLE_FPS = re.compile(r"export_to_video\([^)]*fps=(\d+)")


def spec_of(checkpoint: Checkpoint) -> Spec:
    """The spec of `checkpoint`; ModelError where its class is unknown, makes nothing to look at, or differentiates."""
    source = read_source(checkpoint.arch)
    medium, configs = _medium(source), checkpoint.configs
    if medium == "audio" and _sound(configs) is None:
        raise ModelError("no configuration of this checkpoint says how many samples its sound has per second")
    return Spec(
        arch=source.arch,
        family=source.arch,
        summary=f"{source.arch} of {LIBRARY}",
        tasks=_tasks(source, medium),
        components=_components(source, checkpoint),
        defaults=_defaults(source, medium, configs),
        supported=frozenset(core_parameters(source).values()) | _beside(source, medium),
        fits=FITS,
        limits=lambda configs: _limits(source, configs),
        extra=extra_type(source),
        foreign=Foreign(
            LIBRARY,
            notes(source, medium),
            lambda negative, params: _objection(source, negative, params),
            door="omnimuse.compat.diffusers.door",
            prompted="prompt" in source.parameters,
        ),
    )


def refuse_features(arch: str, config: Config) -> None:
    """ConfigError for a feature that works on our own networks only."""
    check(arch, config.cache)
    asked = {
        "attention": (config.attention.default != "auto" or bool(config.attention.per_role), "attention backends"),
        "quantize": (bool(config.quantize.schemes), "packed weights"),
        "offload": (config.offload.mode != "none", "weights that wait elsewhere"),
        "compile": (config.compile.mode != "none", "compiled blocks"),
        "kernels": (config.kernels.mode == "triton", "fused kernels"),
        "parallel": (config.parallel != type(config.parallel)(), "several ranks"),
        "decode": (config.decode.in_tiles, "tiles"),
        "contract": (config.contract.steps is False, "a loop that the engine owns, or does not,"),
    }
    for name, (wanted, what) in asked.items():
        if wanted:
            raise ConfigError(
                f"{name} cannot be chosen for this model: it runs through {LIBRARY}, and {what} need a network of "
                f"ours. Leave it out; `omnimuse models` lists the families that have it"
            )


def notes(source: PipelineSource, medium: str) -> dict[str, str]:
    """What is true of a pipeline that runs through the library, each as "answer: reason"."""
    how = "progress bar, as it has no step callback," if source.hook == "progress_bar" else "step callback"
    shown = medium != "audio" and source.shows_latents
    silent = {} if "prompt" in source.parameters else {"prompt": "none: it makes what it does of pictures alone"}
    return {
        **silent,
        "runs through": f"{LIBRARY}: as one call per output, since no family here covers {source.arch}",
        "shared forwards": "no: the library calls its networks itself, for one output at a time",
        "step caches": "no: " + why if (why := obstacle(source.arch)) else "dbcache: through cache-dit",
        "offload, compile, ranks": "no: they work on networks of ours",
        "progress, cancel": f"between steps: its {how} hands control back after each",
        "previews": "yes: unfinished latents decoded small, where its autoencoder takes them as they are"
        if shown
        else "no: no picture can be made of what it shows between steps",
        "pause": "between steps: it stands still, and what it holds stays on the device",
    }


def playing_speed(source: PipelineSource) -> float:
    """Frames per second: the class's own default, that of the example in its documentation, or the usual one."""
    for name in ("frame_rate", "fps"):
        if name in source.parameters and isinstance(value := source.parameters[name].default, int | float):
            return float(value)
    example = _EXAMPLE_FPS.search(source.text)
    return float(example[1]) if example else USUAL_FPS


def _medium(source: PipelineSource) -> str:
    medium = source.medium
    if medium is None:
        raise ModelError(
            f"{source.arch} gives {', '.join(source.outputs)} and no picture, video or sound; it is one link of a "
            "chain: use the folder of the whole pipeline"
        )
    if source.needs_gradients:
        raise ModelError(f"{source.arch} differentiates its networks while it draws, and this engine only evaluates")
    if "prompt" not in source.parameters and not any(each.needed for each in picture_parameters(source)):
        raise ModelError(f"{source.arch} takes neither a prompt nor a picture; run it with {LIBRARY} itself")
    return medium


def _beside(source: PipelineSource, medium: str) -> set[str]:
    """Parameters of ours that a request may have besides those that the class has."""
    return ({"fps"} if medium == "video" else set()) | (set() if obstacle(source.arch) else {"cache"})


def _tasks(source: PipelineSource, medium: str) -> tuple[str, ...]:
    pictures = picture_parameters(source)
    needed = any(parameter.needed for parameter in pictures)
    return (*(() if needed else (f"text-to-{medium}",)), *((f"image-to-{medium}",) if pictures else ()))


def _components(source: PipelineSource, checkpoint: Checkpoint) -> dict[str, Component]:
    """What the checkpoint has, and what the class needs besides."""
    found = {name: Component((kind,)) for name, (_, kind) in checkpoint.components.items()}
    maker = source.bodies.get("__init__")
    optional: Iterable[str] = source.attributes.get("_optional_components", ())
    if maker is not None:
        arguments = maker.args.args[1:]
        for argument in arguments[: len(arguments) - len(maker.args.defaults)]:
            if argument.arg not in found and argument.arg not in optional:
                wanted = "" if argument.annotation is None else ast.unparse(argument.annotation)
                found[argument.arg] = Component((wanted,))
    return found


def _defaults(source: PipelineSource, medium: str, configs: Configs) -> DiffusionParams:
    chosen: dict[str, Any] = {}
    for theirs, ours in core_parameters(source).items():
        value = source.parameters[theirs].default
        if isinstance(value, int | float) and not isinstance(value, bool):
            chosen[ours] = value
    sides = {name: default_side(source, configs, name) for name in ("height", "width")}
    speed = {"fps": playing_speed(source)} if medium == "video" else {}
    return DiffusionParams(**{**chosen, **sides, **speed, "num_outputs_per_prompt": 1, "output_type": "pil"})


def _limits(source: PipelineSource, configs: Configs) -> Limits:
    pictures = picture_parameters(source)
    many = any(parameter.name in MANY for parameter in pictures)
    ours = set(core_parameters(source).values())
    own = f"{source.arch} has no such parameter; leave it out"
    given = {"seed", "num_outputs_per_prompt", "output_type"}
    return Limits(
        size_multiple=size_multiple(source, configs),
        max_side=MAX_SIDE,
        max_sequence_length=MAX_TOKENS,
        min_images=sum(parameter.needed for parameter in pictures),
        max_images=MAX_FRAMES if many else len(pictures),
        refuses=dict.fromkeys(ALWAYS - given - ours, own) | ({"cache": why} if (why := obstacle(source.arch)) else {}),
        max_frames=MAX_FRAMES if "num_frames" in ours else 1,
        sound=_sound(configs) if "audio" in source.media else None,
    )


def _objection(source: PipelineSource, negative: str | None, params: DiffusionParams) -> str | None:
    if negative is not None and "negative_prompt" not in source.parameters:
        return f"negative_prompt means nothing to {source.arch}; leave it out"
    if params.output_type == "latent" and not source.calls("latent"):
        return f"output_type='latent' does not fit {source.arch}, which gives no latents; use 'pil' or 'pt'"
    return None


def _sound(configs: Configs) -> SoundLimits | None:
    """Samples of sound per second: what the last network that says one was made for; None where none does."""
    said = [
        rate
        for name in ("vocoder", "vae", "unet", "transformer")
        for key in ("output_sampling_rate", "sampling_rate", "sample_rate")
        if isinstance(rate := configs.get(name, {}).get(key), int)
    ]
    return SoundLimits(said[0]) if said else None
