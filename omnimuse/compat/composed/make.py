"""Makes a composed pipeline: the facts of its configuration, its components, and the stages that it is composed of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from omnimuse.attention.selection import bind_all
from omnimuse.compat.composed.discover import CONFIG, SAMPLING, Named, Package
from omnimuse.compat.composed.spec import NETWORK, PIPELINE, facts_of
from omnimuse.compat.composed.weights import network_of
from omnimuse.compat.contract.adapters import Renaming, dress_all, wardrobe
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.extracted import by_extractor, extract
from omnimuse.compat.contract.make import shared_tiles
from omnimuse.compat.contract.offloaded import Passed
from omnimuse.compat.contract.origins import Origins
from omnimuse.compat.contract.packed import NETWORKS, pack
from omnimuse.compat.contract.passes import refuse_whole_weights, room_for, transform
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.contract.tokens import attend_across
from omnimuse.compat.diffusers.read import read_component
from omnimuse.compat.door import Place, Wardrobe
from omnimuse.compat.sglang.configs.models.dits.base import DiTArchConfig, DiTConfig
from omnimuse.compat.sglang.configs.pipeline_configs.base import PipelineConfig
from omnimuse.compat.sglang.configs.sample.sampling_params import SamplingParams
from omnimuse.compat.sglang.runtime.layers.attention import UlyssesAttention, USPAttention
from omnimuse.compat.sglang.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from omnimuse.compat.sglang.runtime.pipelines_core.stages.base import PipelineStage
from omnimuse.compat.sglang.runtime.pipelines_core.stages.denoising import DenoisingStage
from omnimuse.compat.sglang.runtime.server_args import ServerArgs
from omnimuse.compat.sglang.utils import PRECISION_TO_TYPE
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.autoencoder_kl import shared_out
from omnimuse.core.caches import CacheConfig
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from omnimuse.parallel.mesh import SEQUENCE, Mesh


@dataclass(frozen=True)
class Live:
    """A composed pipeline with its weights: its stages by name, and where its code finds itself."""

    stages: Mapping[str, PipelineStage]
    sampling: type[SamplingParams]
    surroundings: Surroundings

    @property
    def args(self) -> ServerArgs:
        """What its stages are told of the engine."""
        found = self.surroundings.config
        assert isinstance(found, ServerArgs)
        return found

    def own_stages(self) -> list[PipelineStage]:
        """Stages for one output: copies, which hold schedulers of that output and share everything else."""
        from diffusers.configuration_utils import ConfigMixin

        memo: dict[int, Any] = {}

        def own(value: Any) -> Any:
            if isinstance(value, ConfigMixin) and not isinstance(value, nn.Module):
                return memo.setdefault(id(value), copy.deepcopy(value))
            if isinstance(value, list | tuple):
                return type(value)(own(each) for each in value)
            return {key: own(each) for key, each in value.items()} if isinstance(value, dict) else value

        found = []
        for stage in self.stages.values():
            mine = copy.copy(stage)
            vars(mine).update({name: own(value) for name, value in vars(stage).items()})
            found.append(mine)
        return found


@dataclass(frozen=True)
class Composed:
    """What became of a class: its pipeline, its components by name, what was chosen, which layers wear adapters."""

    live: Live
    modules: dict[str, Any]
    passed: Passed
    wardrobe: Wardrobe


def make(entry: Entry, place: Place) -> Composed:
    """The pipeline that `entry` names."""
    facts = facts_of(entry, place.checkpoint)
    config = _class(facts.configs[CONFIG], PipelineConfig)()
    args = args_of(config, place)
    surroundings = Surroundings(place.device, place.dtype, place.mesh, args)
    cls = entry.imported(entry.name)
    if not (isinstance(cls, type) and issubclass(cls, ComposedPipelineBase)):
        raise ModelError(f"{entry.module}:{entry.name} is no ComposedPipelineBase; derive it from that")
    with within(surroundings), quiet("diffusers"), quiet("transformers"):
        _take_architectures(config, place.checkpoint, facts.required)
        origins: list[Origins] = []
        modules = {name: _module(name, facts.package, config, place, origins) for name in facts.required}
        networks = nn.ModuleDict({name: each for name, each in modules.items() if name in NETWORKS})
        parts = nn.ModuleDict({name: each for name, each in modules.items() if isinstance(each, nn.Module)})
        told = dict.fromkeys(networks, renaming_of(config.dit_config))
        tiled = _tiles(parts, place.config.parallel.vae_tiles)
        wearing = wardrobe(parts, place.checkpoint, origins, frozenset((PIPELINE, NETWORK)), told)
        packed = pack(dict(parts), place.config, place.device)
        extracted = by_extractor(place.config.cache)
        packed += extract(networks, place.config, own_loop=False) if extracted else []
        around = replace(place, config=replace(place.config, cache=CacheConfig())) if extracted else place
        passed = transform(networks, around, share_latents, parts)
        if place.config.compile.mode != "none":
            dress_all(wearing, place.rack)
        passed.choices += [*packed, *tiled]
        pipe = cls(str(place.checkpoint.folder), args, modules)
    if not pipe.stages:
        raise ModelError(f"create_pipeline_stages of {entry.name} adds no stage; call add_stage in it")
    refuse_ranks(entry.name, pipe.stages, modules, config, place)
    refuse_cache(entry.name, pipe.stages, place)
    sites = {f"{name} of {PIPELINE}": each for name, each in modules.items() if isinstance(each, nn.Module)}
    passed.choices += bind_all(sites, place.config, place.device, place.dtype)
    sampling = _class(facts.configs[SAMPLING], SamplingParams) if SAMPLING in facts.configs else SamplingParams
    return Composed(Live(pipe.named_stages, sampling, surroundings), modules, passed, wearing)


def refuse_ranks(
    name: str, stages: list[PipelineStage], modules: Mapping[str, Any], config: PipelineConfig, place: Place
) -> None:
    """ConfigError for ranks that would have nothing to share."""
    parallel = place.config.parallel
    loops = [stage for stage in stages if isinstance(stage, DenoisingStage)]
    if parallel.sequence > 1:
        refuse_shared_tokens(name, loops, modules, config)
    if parallel.cfg > 1 and not all(stage.parted for stage in loops):
        raise ConfigError(
            f"cfg={parallel.cfg} cannot be: the denoising stage of {name} puts both predictions together itself; leave "
            "it out"
        )
    parts = nn.ModuleDict({key: each for key, each in modules.items() if isinstance(each, nn.Module)})
    refuse_whole_weights(name, parts, parallel.tensor)


def refuse_shared_tokens(
    name: str, loops: list[DenoisingStage], modules: Mapping[str, Any], config: PipelineConfig
) -> None:
    """ConfigError where nobody says what each rank's tokens are, or no site would attend to those of the others."""
    kind, sites = (
        type(config),
        (part for each in modules.values() if isinstance(each, nn.Module) for part in each.modules()),
    )
    own = kind.shard_latents_for_sp is not PipelineConfig.shard_latents_for_sp
    why = ""
    pictures = config.is_image_gen if config.task_type is None else config.task_type.is_image_gen()
    if not own and pictures:
        why = (
            f"{kind.__name__} does not say which latents are each rank's; give it shard_latents_for_sp and "
            "gather_latents_for_sp"
        )
    elif not all(stage.stock for stage in loops):
        why = f"the denoising stage of {name} has a forward of its own, which calls its network with all of them"
    elif not any(isinstance(part, USPAttention | UlyssesAttention) for part in sites):
        why = f"no network of {name} attends to other ranks' tokens; build it with USPAttention or UlyssesAttention"
    if why:
        raise ConfigError(f"ulysses_degree and ring_degree cannot be: {why}, or leave them out")


def refuse_cache(name: str, stages: list[PipelineStage], place: Place) -> None:
    """ConfigError for a step cache in a loop whose steps are not the engine's."""
    cached = place.config.cache.kind
    if cached != "none" and not all(stage.stock for stage in stages if isinstance(stage, DenoisingStage)):
        raise ConfigError(
            f"cache={cached} cannot be: the denoising stage of {name} has a forward of its own, and a step cache must "
            "know the step; leave it out"
        )


def share_latents(networks: nn.Module, mesh: Mesh) -> list[Choice]:
    """Sites that attend across ranks; which latents each has, the pipeline's configuration says."""
    for name, network in networks.named_children():
        attend_across(name, network, mesh)
    count = mesh.axis(SEQUENCE).size
    return [Choice("ranks", "tokens", f"{count} shares", "asked for: as its shard_latents_for_sp says")]


def args_of(config: PipelineConfig, place: Place) -> ServerArgs:
    """What stages may look at; the configuration's precisions become those that the components have here."""
    parallel = place.config.parallel
    if place.config.decode.in_tiles or parallel.vae_tiles > 1:
        config.vae_tiling = True
    config.model_path = str(place.checkpoint.folder)
    return ServerArgs(
        model_path=str(place.checkpoint.folder),
        pipeline_config=config,
        num_gpus=place.mesh.size,
        tp_size=parallel.tensor,
        sp_degree=parallel.sequence,
        ulysses_degree=parallel.ulysses,
        ring_degree=parallel.ring,
        enable_cfg_parallel=parallel.cfg > 1,
    )


def _class(named: Named, base: type) -> Any:
    found = getattr(import_module(named.module), named.name)
    if not issubclass(found, base):
        raise ModelError(f"{named.module}:{named.name} is no {base.__name__}; derive it from that")
    return found


def _take_architectures(config: PipelineConfig, checkpoint: Checkpoint, required: tuple[str, ...]) -> None:
    """What the checkpoint says of its components, in the configurations that stages ask."""
    encoders = [name for name in required if name.startswith("text_encoder")]
    taking = {"transformer": config.dit_config, "dit": config.dit_config, "vae": config.vae_config}
    taking |= dict(zip(encoders, config.text_encoder_configs, strict=False))
    for name, model in taking.items():
        if name in required and name in checkpoint.components:
            said = checkpoint.config(name)
            model.update_model_arch({key: value for key, value in said.items() if not key.startswith("_")})


def renaming_of(config: DiTConfig) -> Renaming:
    """What its network's configuration says of adapters."""
    arch = config.arch_config
    if not isinstance(arch, DiTArchConfig):
        return Renaming()
    return Renaming(arch.lora_param_names_mapping, tuple(arch.exclude_lora_layers))


def _module(name: str, package: Package, config: PipelineConfig, place: Place, origins: list[Origins]) -> Any:
    """A component: a network of the package where it has a class of that name, else the library's."""
    if name not in place.checkpoint.components:
        raise ModelError(f"{place.checkpoint.folder} has no component {name!r}, which this pipeline requires")
    kind, dtype = place.checkpoint.components[name][1], dtype_of(name, config, place.dtype)
    networks = {each.name: each for each in package.entries()}
    waits = name in NETWORKS or place.config.offload.mode == "components"
    device = room_for(place) if waits else place.device
    if kind in networks and name in NETWORKS:
        cls = getattr(import_module(networks[kind].module), kind)
        network, seen = network_of(cls, config.dit_config, place.checkpoint, name, (device, dtype))
        origins.append(seen)
        return network
    return read_component(place.checkpoint, name, dtype, device, place.config.model.load)


def dtype_of(name: str, config: PipelineConfig, engine: torch.dtype) -> torch.dtype:
    """What a component computes in: float32 on an engine of that, else what the configuration says of its kind.

    The denoising network has the engine's.
    """
    said = {"vae": config.vae_precision, "image_encoder": config.image_encoder_precision}
    precisions = config.text_encoder_precisions
    if name.startswith("text_encoder"):
        number = int(name.rpartition("_")[2]) - 1 if name[-1].isdigit() else 0
        said[name] = precisions[number] if number < len(precisions) else "fp32"
    if engine == torch.float32 or name not in said:
        return engine
    if said[name] not in PRECISION_TO_TYPE:
        raise ModelError(f"the precision of {name} is {said[name]!r}; use one of {', '.join(PRECISION_TO_TYPE)}")
    return torch.float32 if said[name] == "fp32" else engine


def _tiles(parts: nn.Module, ranks: int) -> list[Choice]:
    """So many ranks decode the tiles of the library's autoencoders; ConfigError where there is none."""
    if ranks == 1:
        return []
    for part in parts.children():
        kind: Any = type(part)
        part.__class__ = shared_out(kind)  # it stays what it is, and knows who decodes
    return shared_tiles(parts, ranks)
