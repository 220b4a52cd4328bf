"""From a configuration to a live pipeline: the build passes (seam B), listed once, in order.

Called by the engine's start-up and, without weights, by `explain`. Each pass takes the build so far and adds to it; a
pass that cannot do what was asked raises with the reason. A model file knows nothing of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from omnimuse.attention.selection import bind
from omnimuse.cache.teacache import TeaCache
from omnimuse.core.config import Choice, Config, Environment, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.request import Door
from omnimuse.core.spec import Component, Spec
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.loader.components import library_class, load_library_component
from omnimuse.loader.resolve import Folder
from omnimuse.loader.tensors import construct as construct_empty
from omnimuse.loader.weights import DtypePolicy, load_weights, randomise
from omnimuse.models import REGISTRY
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.worker.allocator import keep_memory
from omnimuse.worker.find import Found, find
from omnimuse.worker.governor import Governor, choose_waiting, govern
from omnimuse.worker.place import choose_device, choose_dtype
from omnimuse.worker.steady import choose_tier
from omnimuse.worker.threads import Room, choose_threads

logger = logging.getLogger(__name__)


@dataclass
class Build:
    """A model under construction: the modules that are ours, and all components. `resources` close with the engine."""

    found: Found
    mesh: Mesh
    device: torch.device
    dtype: torch.dtype
    threads: Choice
    waiting: Choice
    own: dict[str, nn.Module] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def networks(self) -> dict[str, Network]:
        """Those of our modules that run at every step."""
        return {name: module for name, module in self.own.items() if isinstance(module, Network)}


@dataclass(frozen=True)
class Built:
    """A live pipeline, the door in front of it, and everything that was chosen on the way."""

    pipeline: Pipeline
    door: Door
    choices: tuple[Choice, ...]
    resources: ExitStack
    governor: Governor | None


Pass = Callable[[Build], None]


def build(config: Config, mesh: Mesh | None = None) -> Built:
    """Run every pass and return the live pipeline. Takes as long as reading the weights."""
    return _assemble(_run(_begin(config, mesh or Mesh.single()), PASSES))


def import_libraries(config: Config) -> None:
    """Import the library classes that a build will need: the longest part of starting a small model."""
    found = find(config)
    for name, component in found.spec.components.items():
        if component.built and not component.network and name in found.checkpoint.components:
            library_class(found.checkpoint, name)


def explain(config: Config) -> list[Choice]:
    """Everything a build would choose, and why; networks are constructed without memory, no weights are read."""
    under = _run(_begin(config, Mesh.single()), (threads, construct, attention, tier))
    under.resources.close()
    return [*under.choices, *_engine_choices(under)]


def connect(config: ParallelConfig) -> Mesh:
    """The ranks that share the work: this process alone, or those that `torchrun` started."""
    if config.cfg == 1:
        return Mesh.single()
    if not dist.is_initialized():
        environment = Environment.read()
        if environment.world_size != config.cfg:
            raise ConfigError(
                f"parallel cfg={config.cfg} needs {config.cfg} processes, this run has {environment.world_size}; "
                f"start it with `torchrun --nproc-per-node {config.cfg} -m omnimuse ...`"
            )
        if torch.cuda.is_available():
            torch.cuda.set_device(environment.local_rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Mesh.from_process_group(cfg=config.cfg)


# -- the passes, in order ----------------------------------------------------------------------------------------------


def threads(under: Build) -> None:
    """As many threads as were chosen, until the engine closes."""
    under.resources.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(int(under.threads.value))
    logger.info("threads: %s, %s", under.threads.value, under.threads.reason)


def construct(under: Build) -> None:
    """Our own networks, on the meta device: shapes without memory."""
    for name, component in under.found.spec.components.items():
        if component.network and name in under.found.checkpoint.components:
            kind = _import(component.network)
            config = under.found.checkpoint.config(name)
            under.own[name] = construct_empty(partial(kind.from_config, config)).eval().requires_grad_(False)


def attention(under: Build) -> None:
    """Every attention site gets its backend."""
    found = under.found
    for name, network in under.networks.items():
        bindings = bind(network, found.config.attention, under.device, under.dtype)
        alike = Counter((binding.role, binding.backend, binding.reason) for binding in bindings)
        for (role, backend, reason), sites in alike.items():
            under.choices.append(Choice("attention", f"{name}, {role} ({sites} sites)", backend, reason))


def tier(under: Build) -> None:
    """Networks that give a row the same bits in any company, where the tier asks for it."""
    policies = {network: _policy(under, name) for name, network in under.networks.items()}
    under.choices.append(choose_tier(under.found.config, under.device, policies))


def load(under: Build) -> None:
    """Weights, streamed from the checkpoint (or random ones, for `load="dummy"`)."""
    found = under.found
    for name, component in found.spec.components.items():
        if name in under.own:
            _fill(under, name, component)
            under.components[name] = under.own[name]
        elif name in found.checkpoint.components and component.built:
            under.components[name] = load_library_component(
                found.checkpoint, name, under.dtype, under.device, found.config.model.load
            )


def memory_format(under: Build) -> None:
    """Convolutions in channels-last order, the one that matrix units read without reordering."""
    for name, component in under.components.items():
        if isinstance(component, nn.Module) and _has_flat_convolutions(component):
            component.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            under.choices.append(Choice("place", f"{name} order", "channels last", "its convolutions are faster so"))


def offload(under: Build) -> None:
    """Blocks that wait outside the device until they run."""
    if under.found.config.offload.mode == "none":
        return
    for name, network in under.networks.items():
        for label, stack in network.stacks().items():
            runner = LayerwiseOffload(stack.blocks(), under.device, under.found.config.offload.folder)
            stack.runner = runner
            under.resources.callback(runner.close)
            under.choices.append(Choice("offload", f"{name}.{label}", "layers", "asked for"))


def compile_blocks(under: Build) -> None:
    """Blocks that are compiled when they first run."""
    if under.found.config.compile.mode == "none":
        return
    if under.found.config.offload.mode != "none":
        raise ConfigError(
            "compiled blocks keep their weights in place, offload=layers takes them away; choose one of them"
        )
    for name, network in under.networks.items():
        for label, stack in network.stacks().items():
            stack.runner = CompiledRunner(stack.blocks())
            under.choices.append(Choice("compile", f"{name}.{label}", "blocks", "asked for"))


def step_cache(under: Build) -> None:
    """A step cache around the last stack of each network, where most of the time goes."""
    cache = under.found.config.cache
    if cache.kind == "none":
        return
    for network in under.networks.values():
        stack = list(network.stacks().values())[-1]
        stack.runner = TeaCache(cache.threshold, under.found.spec.teacache, stack.runner)


PASSES: tuple[Pass, ...] = (
    threads, construct, attention, tier, load, memory_format, offload, compile_blocks, step_cache
)  # fmt: skip


def _begin(config: Config, mesh: Mesh) -> Build:
    found = find(config)
    device, device_choice = choose_device(config.model)
    dtype, dtype_choice = choose_dtype(config.model, device, Environment.read().dtype)
    count, threads = choose_threads(config.host, Room.here(torch.get_num_threads()))
    waiting, kept = choose_waiting(device, count, Environment.read().omp_wait_policy), keep_memory(device)
    places = [choice for choice in (device_choice, dtype_choice, threads, waiting, kept) if choice]
    choices = [*_model_choices(found.folder, found.spec, found.door), *places]
    return Build(found, mesh, device, dtype, threads, waiting, choices=choices)


def _run(under: Build, passes: tuple[Pass, ...]) -> Build:
    try:
        for build_pass in passes:
            build_pass(under)
    except BaseException:
        under.resources.close()
        raise
    return under


def _assemble(under: Build) -> Built:
    found = under.found
    ctx = Context(
        spec=found.spec,
        limits=found.door.limits,
        configs=found.checkpoint.configs,
        components=under.components,
        device=under.device,
        dtype=under.dtype,
        mesh=under.mesh,
    )
    pipeline = REGISTRY.pipeline(found.spec.arch)(ctx)
    governor = govern(under.waiting, int(under.threads.value))
    if governor is not None:
        under.resources.callback(governor.close)
    return Built(pipeline, found.door, tuple(under.choices), under.resources, governor)


def _fill(under: Build, name: str, component: Component) -> None:
    found, module = under.found, under.own[name]
    policy = _policy(under, name)
    if found.config.model.load == "dummy":
        randomise(module, 0, name, policy, under.device)
        return
    rules = _import(component.rules) if component.rules else ()
    load_weights(module, found.checkpoint.path(name), rules, policy, under.device)


def _policy(under: Build, name: str) -> DtypePolicy:
    return DtypePolicy(under.dtype, under.found.spec.components[name].keep_float32)


def _has_flat_convolutions(module: nn.Module) -> bool:
    """Whether there are convolutions over pictures and none over videos, whose weights have no such order."""
    parts = list(module.modules())
    return any(isinstance(part, nn.Conv2d) for part in parts) and not any(isinstance(part, nn.Conv3d) for part in parts)


def _import(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)


# -- what explain prints -----------------------------------------------------------------------------------------------


def _model_choices(folder: Folder, spec: Spec, door: Door) -> tuple[Choice, ...]:
    variant = spec.variant(folder.id)
    defaults: Mapping[str, Any] = {
        name: value for name, value in vars(door.defaults).items() if value is not None and name != "extra"
    }
    limits = door.limits
    frames = Choice("limits", "frames", f"1 + {limits.frame_step}k", f"at most {limits.max_frames}")
    return (
        Choice("model", "folder", str(folder.path), f"{folder.source}, found for {folder.id!r}"),
        Choice("model", "family", spec.family, f"model_index.json names {spec.arch}"),
        *(Choice("defaults", name, str(value), f"of {variant.name}") for name, value in defaults.items()),
        Choice(
            "limits",
            "size",
            f"multiples of {limits.size_multiple}",
            f"at most {limits.max_side} a side",
        ),
        *((frames,) if limits.max_frames > 1 else ()),
    )


def _engine_choices(under: Build) -> list[Choice]:
    config, checkpoint = under.found.config, under.found.checkpoint
    loops = [stage for stage in REGISTRY.pipeline(checkpoint.arch).stages if isinstance(stage, Denoise)]
    solvers = [(loop, *loop.solver(checkpoint.configs)) for loop in loops]
    features = {"cache": config.cache.kind, "offload": config.offload.mode, "compile": config.compile.mode}
    return [
        *(Choice("solver", loop.name, type(solver).__name__, why) for loop, solver, why in solvers),
        *(Choice("features", name, value, _asked(value)) for name, value in features.items()),
        Choice("batching", "tick_tokens", str(config.schedule.tick_tokens), "row tokens that one tick may compute"),
    ]


def _asked(value: str) -> str:
    return "default" if value == "none" else "asked for"
