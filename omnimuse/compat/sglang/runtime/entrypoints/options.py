"""What scripts say to `DiffGenerator`, in our words: its options, and what a request chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.composed.sampling import OPTIONS, SAMPLING, Meaning
from omnimuse.compat.composed.spec import ComposedParams
from omnimuse.compat.contract.names import TABLE
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.compat.sglang.runtime.entrypoints.caching import cache_of, cache_of_variables
from omnimuse.core.config import (
    AttentionConfig,
    CompileConfig,
    Config,
    DecodeConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
)
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.names import BACKENDS
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Spec

DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "auto": "auto"}
AWAY = ("dit_cpu_offload", "text_encoder_cpu_offload", "image_encoder_cpu_offload", "vae_cpu_offload")
MOST_PROMPTS = 10_000


def config_of(options: Mapping[str, Any]) -> Config:
    """The whole configuration; ConfigError for an option that is not known or cannot be honoured."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise ConfigError(f"{name} is no option here; {TABLE} lists those of SGLang, and what each does")
        if not _allowed(OPTIONS[name], value):
            raise ConfigError(f"{name}={value!r} is not taken here: {OPTIONS[name].refused}; see {TABLE}")
    if not options.get("model_path"):
        raise ConfigError("model_path is missing; name a folder or an id")
    plugin = options.get("plugin") or ()
    model = ModelConfig(
        str(options["model_path"]),
        _named("dit_precision", options.get("dit_precision") or "auto", DTYPES),
        options.get("device") or "auto",
        plugins=(plugin,) if isinstance(plugin, str) else tuple(plugin),
    )
    return Config(
        model,
        attention=AttentionConfig(
            _named("attention_backend", (options.get("attention_backend") or "auto").lower(), BACKENDS)
        ),
        offload=_offload(options),
        compile=CompileConfig("blocks" if options.get("enable_torch_compile") else "none"),
        parallel=_parallel(options),
        decode=DecodeConfig(bool(options.get("vae_tiling"))),
        cache=cache_of_variables(),
    )


def _allowed(meaning: Meaning, value: Any) -> bool:
    return not meaning.refused or any(value is each or value == each for each in meaning.nothing)


def _named(option: str, value: str, known: Mapping[str, str]) -> str:
    if value not in known:
        raise ConfigError(f"{option}={value!r} is not here; use one of {', '.join(known)}")
    return known[value]


def _offload(options: Mapping[str, Any]) -> OffloadConfig:
    if options.get("dit_layerwise_offload"):
        return OffloadConfig("layers")
    return OffloadConfig("components" if any(options.get(name) for name in AWAY) else "none")


def _parallel(options: Mapping[str, Any]) -> ParallelConfig:
    """Ranks along our axes; those of `num_gpus` that no option takes share the tokens of a row, as there."""
    ranks, tensor = int(options.get("num_gpus") or 1), int(options.get("tp_size") or 1)
    cfg, ring = 2 if options.get("enable_cfg_parallel") else 1, int(options.get("ring_degree") or 1)
    shared = int(options.get("sp_degree") or options.get("ulysses_degree") or 0)
    if shared and "sp_degree" not in options:
        shared *= ring
    shared = shared or max(ring, ranks // (tensor * cfg))
    ulysses = int(options.get("ulysses_degree") or shared // ring)
    found: dict[str, Any] = {"tensor": tensor, "ulysses": ulysses, "ring": ring, "cfg": cfg}
    used = tensor * ulysses * ring * cfg
    if ("num_gpus" in options and used != ranks) or ulysses * ring != shared:
        raise ConfigError(
            f"num_gpus={ranks}, sp_degree={shared} and {found} do not fit; num_gpus is tp_size x sp_degree x 2 with "
            "enable_cfg_parallel, and sp_degree is ulysses_degree x ring_degree"
        )
    shard, tiles = (
        count if options.get(name) else 1 for name, count in (("use_fsdp_inference", ulysses * ring), ("vae_sp", used))
    )
    return ParallelConfig(**found, shard=shard, vae_tiles=tiles)


@dataclass(frozen=True)
class Files:
    """What becomes of the results."""

    folder: str = "outputs/"
    name: str | None = None
    save: bool = True
    frames: bool = False


@dataclass(frozen=True)
class Wanted:
    """A request in our words: its prompts with their pictures, its parameters, and what becomes of its results."""

    prompts: Sequence[Mapping[str, Any]]
    params: DiffusionParams
    files: Files = field(default_factory=Files)


def wanted_of(given: Mapping[str, Any], spec: Spec) -> Wanted:
    """What a script asks for; RequestError names a field that is not known, or that cannot be given to this model."""
    composed = issubclass(spec.extra, ComposedParams)
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for name, value in given.items():
        meaning = SAMPLING.get(name)
        if meaning is None or meaning.ours == "sampling":
            if not composed and (meaning is None or value not in meaning.nothing):
                raise _unknown(name, spec, meaning)
            theirs |= {name: value} if composed else {}
        elif not _allowed(meaning, value):
            raise RequestError(f"{name} cannot be given here: {meaning.refused}; see {TABLE}", name)
        elif meaning.ours == "cache":
            continue  # several fields, one choice
        elif name == "num_frames" and value == 1 and name not in spec.supported:
            continue  # what pictures are there: one frame
        elif meaning.ours and value is not None:
            ours[meaning.ours] = value
    if cache := cache_of(given):
        ours["cache"] = cache
    if theirs:
        ours["extra"] = {"sampling": theirs}
    files = Files(
        given.get("output_path") or "outputs/",
        given.get("output_file_name"),
        bool(given.get("save_output", True)),
        bool(given.get("return_frames", False)),
    )
    return Wanted(_prompts(given), DiffusionParams(**ours, output_type="pt"), files)


def _unknown(name: str, spec: Spec, meaning: Meaning | None) -> RequestError:
    if meaning is not None:
        return RequestError(f"{name} cannot be given to {spec.arch}: it goes {meaning.about}; see {TABLE}", name)
    return RequestError(f"{name} is no sampling parameter here; {TABLE} lists those of SGLang", name)


def chosen(params: SamplingParams) -> dict[str, Any]:
    """What a script set in sampling parameters: what is not as in a fresh object of their class."""
    fresh = type(params)()
    made = {"data_type"}
    return {
        each.name: getattr(params, each.name)
        for each in fields(params)
        if each.name not in made and getattr(params, each.name) != getattr(fresh, each.name)
    }


def _prompts(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt, path = given.get("prompt"), given.get("prompt_path")
    if path is not None:
        if prompt is not None:
            raise RequestError("both prompt and prompt_path are given; give one of them", "prompt_path")
        prompt = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = [prompt] if isinstance(prompt, str) else list(prompt or [" "])
    if not 1 <= len(texts) <= MOST_PROMPTS:
        raise RequestError(f"{len(texts)} prompts; give 1 to {MOST_PROMPTS}", "prompt")
    besides: dict[str, Any] = {}
    if given.get("negative_prompt") is not None:
        besides["negative_prompt"] = given["negative_prompt"]
    if (pictures := given.get("image_path")) is not None:
        besides["images"] = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
    return [{"prompt": text, **besides} for text in texts]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
