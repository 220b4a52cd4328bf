"""Both sides of one request over the same checkpoint, and what they are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

import torch
from torch import Tensor, nn

from omnimuse.core.config import Config
from omnimuse.core.errors import ModelError, OmnimuseError
from omnimuse.core.request import Ask, Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import finished, start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.parity.compare import Part, apart, compare
from omnimuse.parity.notes import Trail
from omnimuse.parity.ours import our_trail
from omnimuse.parity.theirs import load_theirs, their_trail
from omnimuse.pipeline.denoise import Denoise
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.find import find


@dataclass(frozen=True)
class Outcome:
    """Both trails and their parts side by side. `company` is how far our result is from the one in company, `asked`
    what was drawn, and `made_by` what drew it, in words.
    """

    arch: str
    medium: str
    dtype: str
    ours: Trail
    theirs: Trail
    parts: Sequence[Part]
    company: float
    asked: Mapping[str, object] = field(default_factory=dict)
    made_by: str = ""


def parity(config: Config, ask: Ask) -> Outcome:
    """Draw `ask` with a family of ours and with diffusers; both have the checkpoint in memory, one after the other.

    ModelError for a model that no family of ours draws, or that diffusers cannot draw.
    """
    with _engine(config) as engine:
        pipeline = engine.runner.pipeline
        spec, dtype, device = pipeline.spec, pipeline.ctx.dtype, pipeline.ctx.device
        if len(pipeline.results) > 1:
            made = " and ".join(pipeline.results)
            raise ModelError(f"{spec.arch} makes {made} at once, which cannot be compared yet; tests/parity has them")
        components = [pipeline.ctx.components.wherever(name) for name in pipeline.ctx.components]
        if not config.quantize.schemes and any(quantized_layers(c) for c in components if isinstance(c, nn.Module)):
            raise ModelError(
                f"the files of {' and '.join([config.model.model, *config.model.files.values()])} are packed in a way "
                "that diffusers does not read; compare the floats that they were made from"
            )
        networks = [name for stage in pipeline.stages if isinstance(stage, Denoise) for name in stage.networks]
        request = engine.make_request(replace(ask, params=replace(ask.params, num_outputs_per_prompt=1)))
        ours = our_trail(pipeline, request)
        assert ours.result is not None
        company = apart(_in_company(engine, ask, request.seed(0)), ours.result)
    pipe = load_theirs(Checkpoint(find(config).folder.path), dtype)  # with the files of components in it
    there = [name for name in networks if pipe.components.get(name) is not None]
    theirs = their_trail(pipe, request, there, spec)
    named = str(dtype).removeprefix("torch.")
    parts = compare(ours, theirs)
    return Outcome(spec.arch, spec.medium, named, ours, theirs, parts, company, asked_of(request), made_by(device))


def asked_of(request: Request) -> dict[str, object]:
    """Everything that a request says and that counts, by name."""
    params, extra = asdict(request.params), asdict(request.extra)
    said = {"prompt": request.prompt, "negative_prompt": request.negative_prompt, **params, **extra}
    shown = {name: count for name, count in request.counts.items() if count}
    told = {**said, **shown, "seed": request.seed(0)}
    return {name: value for name, value in told.items() if value not in (None, (), {}, []) and name != "extra"}


def made_by(device: torch.device) -> str:
    """The libraries of both sides by version, and where they computed."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("omnimuse", "diffusers", "transformers", "torch"))
    return f"{libraries}; {device.type}, {torch.get_num_threads()} threads"


@contextmanager
def _engine(config: Config) -> Iterator[Engine]:
    engine = start(config)
    try:
        if library := engine.runner.pipeline.spec.library:
            arch = engine.runner.pipeline.spec.arch
            raise ModelError(f"no family of ours draws {arch}: it runs through {library} already")
        yield engine
    finally:
        engine.close()


def _in_company(engine: Engine, ask: Ask, seed: int) -> Tensor:
    """The output of that seed, drawn together with those of the next two."""
    single = replace(ask.params, num_outputs_per_prompt=1)
    asks = [replace(ask, params=replace(single, seed=seed + other)) for other in range(3)]
    try:
        first, *_ = finished(engine, *map(engine.make_request, asks))
    except OmnimuseError as error:
        raise ModelError(f"in company: {error}") from error
    found: Tensor = first.output[0]
    return found
