"""Makes a pipeline of the contract: its configuration, itself, its weights, and the backends of its attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import nn

from omnimuse.attention.selection import bind_all
from omnimuse.compat.contract.adapters import dress_all, wardrobe
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.extracted import by_extractor, extract
from omnimuse.compat.contract.offloaded import Passed
from omnimuse.compat.contract.packed import pack
from omnimuse.compat.contract.passes import refuse_whole_weights, room_for, transform
from omnimuse.compat.contract.spec import NETWORK, PIPELINE
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.contract.weights import fill, sourced
from omnimuse.compat.diffusers.read import packed_in, taken_for_floats, to_install
from omnimuse.compat.diffusers.stepcache import FITS, settings
from omnimuse.compat.door import Place, Wardrobe
from omnimuse.compat.vllm_omni.diffusion.cache.cache_dit_backend import CacheDiTBackend
from omnimuse.compat.vllm_omni.diffusion.data import (
    DiffusionParallelConfig,
    Extras,
    OmniDiffusionConfig,
    TransformerConfig,
)
from omnimuse.compat.vllm_omni.diffusion.distributed.autoencoders.distributed_vae_executor import DistributedVaeMixin
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.core.caches import CacheConfig, completed
from omnimuse.core.config import Choice, Config, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.loader.components import quiet


class Live(nn.Module):
    """A pipeline of the contract with its weights, the functions before and after it, and where it finds itself.

    A module, so that whoever asks a component for its weights finds them.
    """

    def __init__(
        self,
        pipe: nn.Module,
        before: Callable[..., Any] | None,
        after: Callable[..., Any] | None,
        surroundings: Surroundings,
        cached: CacheDiTBackend | None = None,
    ) -> None:
        super().__init__()
        self.pipe: Any = pipe
        self.before, self.after = before, after
        self.surroundings = surroundings
        self.cached = cached

    @cached_property
    def batched(self) -> bool:
        """Whether its `forward` says that it takes a batch of requests."""
        first = next(iter(signature(self.pipe.forward).parameters.values()))
        return "DiffusionRequestBatch" in str(first.annotation)


def make(entry: Entry, place: Place) -> tuple[Live, Passed, Wardrobe]:
    """The pipeline that `entry` names, in one piece, what was chosen on the way, and which layers wear adapters."""
    config = config_of(entry, place)
    surroundings = Surroundings(place.device, place.dtype, place.mesh, config)
    cls = entry.imported(entry.name)
    with within(surroundings), quiet("diffusers"), quiet("transformers"):
        pipe = _made(cls, entry.name, config, place)
        if not isinstance(pipe, nn.Module):
            raise ModelError(f"{entry.module}:{entry.name} makes a {type(pipe).__name__}, and no torch module")
        origins = fill(pipe, entry.name)
        floats = set(taken_for_floats(place.checkpoint)) - sourced(pipe)
        if own := sorted(name for name in floats if reads(pipe, name, place.checkpoint.components[name][1])):
            raise ModelError(_codes(entry.name, own))
        before, after = (
            entry.imported(name)(config) if name else None for name in (entry.pre_process, entry.post_process)
        )
    pipe.eval().requires_grad_(False)
    refuse_ranks(entry.name, pipe, place.config.parallel)
    wearing = wardrobe(pipe, place.checkpoint, [origins], frozenset((PIPELINE, NETWORK)))
    packed = pack(dict(pipe.named_children()), place.config, place.device)
    steps = place.spec.foreign is not None and place.spec.foreign.shares
    extracted = by_extractor(place.config.cache)
    around = steps and not extracted  # whether a step cache goes around lists of blocks
    choices = extract(pipe, place.config, own_loop=not steps) if extracted else []
    passed = transform(pipe, place if around else replace(place, config=replace(place.config, cache=CacheConfig())))
    if place.config.compile.mode != "none":
        dress_all(wearing, place.rack)
    bound = bind_all({PIPELINE: pipe}, place.config, place.device, place.dtype)
    passed.choices += [*choices, *packed, *_decoding(pipe, place), *bound]
    cached = None if steps or extracted else _cached(pipe, place, passed)
    return Live(pipe, before, after, surroundings, cached), passed, wearing


def _made(cls: Any, name: str, config: OmniDiffusionConfig, place: Place) -> Any:
    """The pipeline as its class makes it; ModelError where it cannot be made of files that have weights packed."""
    try:
        with _default_dtype(place.dtype), room_for(place):
            return cls(od_config=config, prefix="")
    except ImportError as problem:
        how = to_install(map(place.checkpoint.path, packed_in(place.checkpoint)))
        raise ModelError(
            f"{name} needs a package that is not here ({problem}); {how or 'install it, or mend what it imports'}"
        ) from problem
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError) as problem:
        if packed := packed_in(place.checkpoint):
            unread = (
                "if a library reads them for it that does not unpack them here, use the checkpoint they were made from"
            )
            how = to_install(map(place.checkpoint.path, packed)) or unread
            raise ModelError(
                f"{name} cannot be made ({problem}); the weights of {', '.join(packed)} are packed: {how}"
            ) from problem
        raise


def reads(pipe: nn.Module, name: str, kind: str) -> bool:
    """Whether it has something of the component `name`, whose class is called `kind`: a part so named, or of that
    class.
    """
    return any(
        path.rpartition(".")[2] == name or kind in [each.__name__ for each in type(part).__mro__]
        for path, part in pipe.named_modules()
    )


def _codes(name: str, components: Sequence[str]) -> str:
    return (
        f"the weights of {', '.join(components)} are packed, and {name} reads them by a library that does not unpack "
        "them; let it have `weights_sources` and `load_weights`, or use the checkpoint they were made from"
    )


def refuse_ranks(name: str, pipe: nn.Module, parallel: ParallelConfig) -> None:
    """ConfigError for ranks that would have nothing to share."""
    refuse_whole_weights(name, pipe, parallel.tensor)
    if parallel.cfg > 1 and not isinstance(pipe, CFGParallelMixin):
        raise ConfigError(
            f"cfg={parallel.cfg} cannot be: {name} makes both predictions itself; derive it from CFGParallelMixin, or "
            "leave it out"
        )


def _cached(pipe: nn.Module, place: Place, passed: Passed) -> CacheDiTBackend | None:
    """cache-dit in a pipeline that has its loop in its `forward`, where a step cache was asked for."""
    choice = place.config.cache
    if choice.kind == "none":
        return None
    backend = CacheDiTBackend(settings(completed(choice, FITS)))
    backend.enable(pipe)
    passed.choices.append(Choice("cache", PIPELINE, "cache-dit's", f"asked for: {choice.kind}"))
    return backend


def config_of(entry: Entry, place: Place) -> OmniDiffusionConfig:
    """What such a pipeline is made from."""
    checkpoint = place.checkpoint
    network = next((name for name in ("transformer", "dit") if name in checkpoint.components), None)
    options = checkpoint.options
    return OmniDiffusionConfig(
        model=str(checkpoint.folder),
        model_class_name=entry.arch,
        dtype=place.dtype,
        tf_model_config=TransformerConfig(checkpoint.config(network) if network else {}),
        model_config=dict(options),
        boundary_ratio=options.get("boundary_ratio"),
        parallel_config=parallel_of(place.config.parallel),
        vae_use_tiling=place.config.decode.in_tiles or place.config.parallel.vae_tiles > 1,
        extras=Extras(auxiliary_text_encoder=place.config.contract.encoder),
        step_execution=place.spec.foreign is not None and place.spec.foreign.shares,
        **_running(place.config),
    )


def _running(config: Config) -> dict[str, Any]:
    """What was chosen of how it runs, under the contract's names."""
    kind = "tea_cache" if by_extractor(config.cache) else config.cache.kind
    return {
        "cache_backend": "cache_dit" if kind == "dbcache" else kind,
        "enable_cpu_offload": config.offload.mode == "components",
        "enable_layerwise_offload": config.offload.mode == "layers",
        "enforce_eager": config.compile.mode == "none",
        "trust_remote_code": config.contract.remote_code,
        "enable_diffusion_pipeline_profiler": config.contract.profile,
        "vae_use_slicing": config.contract.slicing,
    }


def parallel_of(chosen: ParallelConfig) -> DiffusionParallelConfig:
    """Our axes under the contract's names."""
    return DiffusionParallelConfig(
        tensor_parallel_size=chosen.tensor,
        ulysses_degree=chosen.ulysses,
        ring_degree=chosen.ring,
        cfg_parallel_size=chosen.cfg,
        pipeline_parallel_size=chosen.pipe,
        vae_patch_parallel_size=chosen.vae_tiles,
        use_hsdp=chosen.shard > 1,
    )


def _decoding(pipe: nn.Module, place: Place) -> list[Choice]:
    """Every part of it that can decode in tiles, or pictures one at a time, does so where that was asked for."""
    ranks = place.config.parallel.vae_tiles
    asked = {"tiling": place.config.decode.in_tiles, "slicing": place.config.contract.slicing}
    found = shared_tiles(pipe, ranks) if ranks > 1 else []
    for what in (name for name, wanted in asked.items() if wanted):
        able = {name: part for name, part in pipe.named_children() if hasattr(part, f"enable_{what}")}
        if not able:
            raise ConfigError(
                f"vae_use_{what}=True cannot be: no part of {type(pipe).__name__} has enable_{what}; leave it out"
            )
        for part in able.values():
            getattr(part, f"enable_{what}")()
        found += [Choice("decode", f"{PIPELINE}.{name}", what, "asked for") for name in able]
    return found


def shared_tiles(pipe: nn.Module, ranks: int) -> list[Choice]:
    """So many ranks decode the tiles of every autoencoder of it that can share them; ConfigError where none can."""
    able: dict[str, Any] = {name: part for name, part in pipe.named_modules() if isinstance(part, DistributedVaeMixin)}
    if not able:
        raise ConfigError(
            f"vae_patch_parallel_size={ranks} cannot be: no part of {type(pipe).__name__} is a DistributedVaeMixin; "
            "build its autoencoder as DistributedAutoencoderKL, or leave it out"
        )
    for part in able.values():
        part.set_parallel_size(ranks)
        if hasattr(part, "enable_tiling"):
            part.enable_tiling()
        else:
            part.use_tiling = True
    return [Choice("decode", f"{PIPELINE}.{name}", f"tiles shared out to {ranks} ranks", "asked for") for name in able]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters that are made without saying in which format are made in this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
