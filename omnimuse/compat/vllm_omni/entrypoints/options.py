"""What scripts of the contract say to an engine, in our words: its options, prompts and sampling parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from omnimuse.compat.contract.names import TABLE
from omnimuse.compat.contract.spec import ContractParams
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionParallelConfig
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.core.attention import attention_of
from omnimuse.core.cache_names import documented, polynomial
from omnimuse.core.config import (
    AttentionConfig,
    CompileConfig,
    Config,
    ContractConfig,
    DecodeConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
    ScheduleConfig,
)
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.foreign import SETTINGS, note_of
from omnimuse.core.names import BACKENDS, backend_of
from omnimuse.core.params import DiffusionParams
from omnimuse.core.pools import DeployConfig
from omnimuse.core.spec import Spec
from omnimuse.deploy.placing import read_deploy

log = logging.getLogger(__name__)


class _Sharing(TypedDict, total=False):
    """How many ranks share the work."""

    parallel_config: DiffusionParallelConfig
    tensor_parallel_size: int
    ulysses_degree: int
    ring_degree: int
    cfg_parallel_size: int
    use_hsdp: bool


class _Memory(TypedDict, total=False):
    """What saves memory or time."""

    cache_backend: str
    cache_config: Mapping[str, Any]
    enable_cpu_offload: bool
    enable_layerwise_offload: bool
    vae_use_slicing: bool
    vae_use_tiling: bool
    layerwise_num_gpu_layers: int
    enforce_eager: bool


class EngineOptions(_Sharing, _Memory, total=False):
    """Every option that is taken; `plugin` names packages with pipelines."""

    plugin: str | Sequence[str]
    dtype: str
    device: str
    trust_remote_code: bool
    step_execution: bool
    enable_diffusion_pipeline_profiler: bool
    auxiliary_text_encoder: str
    max_num_seqs: int
    diffusion_attention_backend: str
    diffusion_attention_config: Mapping[str, Any]
    stage_configs_path: str
    deploy_config: str
    strategy_config: str


def config_of(model: str, options: EngineOptions) -> Config:
    """The whole configuration; ConfigError for an option that is not known or cannot be honoured."""
    _note_others(options)
    plugin = options.get("plugin", ())
    schedule = ScheduleConfig()
    if "max_num_seqs" in options:
        schedule = replace(schedule, max_running=options["max_num_seqs"])
    backend = options.get("cache_backend") or "none"
    coefficients, settings = polynomial(backend, options.get("cache_config", {}))
    compiled = "blocks" if options.get("enforce_eager") is False else "none"
    return Config(
        ModelConfig(
            model,
            options.get("dtype", "auto"),
            options.get("device", "auto"),
            plugins=(plugin,) if isinstance(plugin, str) else tuple(plugin),
        ),
        attention=_attention(options),
        cache=documented(backend, settings),
        offload=_offload(options),
        compile=CompileConfig(compiled),  # type: ignore[arg-type]
        parallel=_parallel(options),
        decode=DecodeConfig(options.get("vae_use_tiling", False)),
        contract=ContractConfig(
            steps=options.get("step_execution"),
            remote_code=options.get("trust_remote_code", False),
            profile=options.get("enable_diffusion_pipeline_profiler", False),
            slicing=options.get("vae_use_slicing", False),
            encoder=options.get("auxiliary_text_encoder"),
            coefficients=coefficients,
        ),
        schedule=schedule,
        deploy=_deploy(options),
    )


def _note_others(options: Mapping[str, Any]) -> None:
    """Log what means nothing here of options that are not among ours; ConfigError for one that cannot be."""
    known = EngineOptions.__annotations__
    for name in options.keys() - known.keys():
        if name not in SETTINGS:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{name} is no option here{hint}; {TABLE} lists those of the contract, and what each does"
            )
        if said := note_of(name, options[name]):
            log.info("an option that means nothing here: %s", said)


def _deploy(options: EngineOptions) -> DeployConfig:
    """Where stages live, by the file that is named by either name, and by the strategy that lies over it."""
    older, newer = options.get("stage_configs_path"), options.get("deploy_config")
    strategy = options.get("strategy_config")
    if older and newer:
        raise ConfigError(f"stage_configs_path={older!r} and deploy_config={newer!r} are two files; name one")
    if placed := newer or older:
        return read_deploy(Path(placed), Path(strategy) if strategy else None)
    if strategy:
        raise ConfigError(f"strategy_config={strategy!r} lies over a deploy file; name that as deploy_config")
    return DeployConfig()


def _attention(options: EngineOptions) -> AttentionConfig:
    """Which backends attend: as is said by role, or for all sites, or by the environment where no default is."""
    backend, config = options.get("diffusion_attention_backend"), options.get("diffusion_attention_config")
    usual = _backend(backend or Environment.read().attention or "AUTO")
    if config is None:
        return AttentionConfig(usual)
    made = attention_of(config, "diffusion_attention_config: ")
    if config.get("default") is None:
        return replace(made, default=usual)
    if backend:
        raise ConfigError(f"diffusion_attention_backend={backend!r} and a default by role are two; leave one out")
    return made


def _backend(name: str) -> str:
    if name.lower() not in BACKENDS:
        raise ConfigError(f"diffusion_attention_backend={name!r} is not here; use one of {', '.join(BACKENDS)}")
    return backend_of(name)


def _offload(options: EngineOptions) -> OffloadConfig:
    if (count := options.get("layerwise_num_gpu_layers", 1)) != 1:
        raise ConfigError(
            f"layerwise_num_gpu_layers={count} is not allowed: one block is there while the next one comes; use 1"
        )
    if options.get("enable_layerwise_offload", False):
        return OffloadConfig("layers")
    return OffloadConfig("components" if options.get("enable_cpu_offload", False) else "none")


def _parallel(options: EngineOptions) -> ParallelConfig:
    given = options.get("parallel_config", DiffusionParallelConfig())
    if given.data_parallel_size > 1 or given.hsdp_replicate_size > 1:
        raise ConfigError(
            "data_parallel_size and hsdp_replicate_size are not taken here; use `omnimuse serve --replicas N`"
        )
    axes: dict[str, Any] = {
        "tensor": options.get("tensor_parallel_size", given.tensor_parallel_size),
        "ulysses": options.get("ulysses_degree", given.ulysses_degree),
        "ring": options.get("ring_degree", given.ring_degree),
        "cfg": options.get("cfg_parallel_size", given.cfg_parallel_size),
        "pipe": given.pipeline_parallel_size,
        "vae_tiles": given.vae_patch_parallel_size,
    }
    sharded = options.get("use_hsdp", given.use_hsdp)
    if given.hsdp_shard_size not in (-1, axes["ulysses"] * axes["ring"] if sharded else -1):
        raise ConfigError(
            f"hsdp_shard_size={given.hsdp_shard_size} is not allowed: with use_hsdp, all ranks that share tokens keep "
            f"parts of blocks; use -1, or ulysses_degree x ring_degree = {axes['ulysses'] * axes['ring']} with use_hsdp"
        )
    asked = ParallelConfig(**axes)
    return asked.in_parts() if sharded else asked


def prompt_of(given: str | Mapping[str, Any], negative: str | None = None) -> dict[str, Any]:
    """A prompt in our words; pictures and sounds come out of `multi_modal_data`."""
    prompt: dict[str, Any] = {"prompt": given} if isinstance(given, str) else dict(given)
    came = prompt.pop("multi_modal_data", None) or {}
    for theirs, ours in (("image", "images"), ("images", "images"), ("img2img", "images"), ("audio", "sounds")):
        if (value := came.get(theirs)) is not None:
            prompt[ours] = list(value) if isinstance(value, list | tuple) else [value]
    if unknown := sorted(set(came) - {"image", "images", "img2img", "audio"}):
        raise RequestError(f"multi_modal_data has {unknown}; give pictures as 'image' and sounds as 'audio'", "images")
    return prompt if negative is None else {**prompt, "negative_prompt": negative}


def params_of(given: OmniDiffusionSamplingParams | None, spec: Spec) -> DiffusionParams:
    """Sampling parameters in our words; what is left at its default was not chosen."""
    given = given or OmniDiffusionSamplingParams()
    unset = OmniDiffusionSamplingParams()
    ours = {each.name for each in fields(DiffusionParams)} - {"extra"}
    chosen: dict[str, Any] = {}
    for part in fields(OmniDiffusionSamplingParams):
        name, value = part.name, getattr(given, part.name)
        if isinstance(value, type(getattr(unset, name))) and value == getattr(unset, name):
            continue
        if name in ("audio_end_in_s", "audio_length"):
            chosen["seconds"] = value
        elif name in ours:
            chosen[name] = value
        elif name == "extra_args":
            chosen["extra"] = {"extra_args": value} if issubclass(spec.extra, ContractParams) else dict(value)
        elif name != "guidance_scale_provided":
            raise RequestError(f"{name} cannot be given here; {TABLE} says what stands in for it", name)
    return DiffusionParams(**chosen)
