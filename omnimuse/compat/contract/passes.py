"""What is done to the networks of a pipeline of the contract once they have their weights, as their declarations allow.

The order is that of `worker/build.py`: weights in parts or away from the device, compiled blocks, tokens shared among
ranks, and around all that a step cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.cache.stepcache import StepCache, too_few
from omnimuse.compat.contract.blocks import DECLARED, ContractStack, stacked
from omnimuse.compat.contract.tokens import share_tokens
from omnimuse.compat.door import Place
from omnimuse.compat.vllm_omni.diffusion.called import call_behind
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError
from omnimuse.core.plans import Cut
from omnimuse.layers.compiled import Backend
from omnimuse.loader.tensors import stored_tensors
from omnimuse.lora.linear import Rack
from omnimuse.offload.host import DeviceLanes, HostStore
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Away
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore, Store
from omnimuse.parallel.mesh import SEQUENCE, Axis, Mesh
from omnimuse.parallel.shard import Shard, ShardRunner

CALLED = ("forward", "encode", "decode")
"""Methods of a pipeline's part that compute with its weights."""

CONDITIONS = "_hsdp_shard_conditions"


@dataclass
class Passed:
    """What the passes chose, and what is to be closed with the engine."""

    choices: list[Choice] = field(default_factory=list)
    closes: list[Callable[[], None]] = field(default_factory=list)


Sharing = Callable[[nn.Module, Mesh], list[Choice]]
"""(pipeline, mesh): its networks share tokens among ranks from now on."""


def transform(pipe: nn.Module, place: Place, sharing: Sharing = share_tokens) -> Passed:
    """All of it; on the way everything of `pipe` that stays on the device gets there."""
    config, passed = place.config, Passed()
    sharded, away = config.parallel.shard > 1, config.offload.mode == "layers"
    asked = {
        "enable_layerwise_offload": away,
        "use_hsdp": sharded,
        "enforce_eager=False": config.compile.mode != "none",
        "cache_backend": config.cache.kind != "none",
    }
    if any(asked.values()):
        stacks = stacked(pipe)
        if not stacks:
            wanted = next(name for name, there in asked.items() if there)
            raise ConfigError(
                f"{wanted} cannot be: no network of {type(pipe).__name__} says what its blocks are; give it "
                f"{' or '.join(DECLARED)}"
            )
        if away:
            offload(stacks, place, passed)
        if sharded:
            keep_parts(pipe, stacks, place, passed)
        if config.compile.mode != "none":
            compile_blocks(stacks, passed, place.rack)
        if config.cache.kind != "none":
            step_cache(stacks, place, passed)
    if config.offload.mode == "components":
        take_turns(pipe, place, passed)
    pipe._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(place.device))
    if place.mesh.axis(SEQUENCE).size > 1:
        passed.choices += sharing(pipe, place.mesh)
    return passed


def offload(stacks: Mapping[str, ContractStack], place: Place, passed: Passed) -> None:
    """Blocks come to the device one at a time."""
    store = _store(place, passed)
    for label, stack in stacks.items():
        home = _away(stack, place, store, stack.blocks())
        home.rest.enter()  # what several blocks share stays
        for parcel in home.blocks.values():
            parcel.leave()
        stack.runner = LayerwiseOffload(home.blocks)
        how = f"{len(stack.blocks())} blocks one at a time"
        passed.choices.append(Choice("offload", label, how, "asked for"))


def take_turns(pipe: nn.Module, place: Place, passed: Passed) -> None:
    """Parts of `pipe` come to the device when one of their `CALLED` methods is called, and leave for another one."""
    store = _store(place, passed)
    parts = {name: part for name, part in pipe.named_children() if stored_tensors(part)}
    turns = Residency(parts, {name: _away(part, place, store, ()).rest for name, part in parts.items()})
    for name, part in parts.items():
        turns[name].requires_grad_(False)
        for method in CALLED:
            if hasattr(part, method):
                call_behind(part, method, partial(turns.__getitem__, name))
        passed.choices.append(Choice("offload", name, "comes when it is called", "asked for"))
    turns.leave()


def _store(place: Place, passed: Passed) -> Store:
    """Where weights wait."""
    cpu = place.device.type == "cpu"
    store: Store = FileStore(place.config.offload.folder) if cpu else HostStore(DeviceLanes(place.device))
    passed.closes.append(store.close)
    return store


def _away(module: nn.Module, place: Place, store: Store, blocks: Sequence[nn.Module]) -> Away:
    """The home of a module that has its weights, which wait there from now on."""
    stored = stored_tensors(module)
    absent = {name: (_absent(tensor), names) for name, (tensor, names) in stored.items()}
    home = Away(module, absent, place.device, store, blocks)
    for name, (tensor, _) in stored.items():
        home.space(name, tensor).copy_(tensor.detach())
    home.seal()
    return home


def _absent(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta


def keep_parts(pipe: nn.Module, stacks: Mapping[str, ContractStack], place: Place, passed: Passed) -> None:
    """Ranks that share tokens keep a part of every block, where the network's conditions name it."""
    axis = place.mesh.axis(SEQUENCE)
    for label, stack in stacks.items():
        network = pipe.get_submodule(label.rpartition(".")[0])
        kind = type(network)
        conditions = getattr(kind, CONDITIONS) if hasattr(kind, CONDITIONS) else ()
        named = label.rpartition(".")[2]
        for index, block in enumerate(stack.blocks()):
            if not any(_plain(each)(f"{named}.{index}", block.get_submodule("inner")) for each in conditions):
                raise ConfigError(
                    f"use_hsdp cannot be: {CONDITIONS} of {type(network).__name__} names no block {label}.{index}; "
                    "add a condition that does, or leave it out"
                )
        stack.runner = ShardRunner({block: _in_parts(block, axis) for block in stack.blocks()}, axis)
        how = f"1/{axis.size} of every block, put together while it runs"
        passed.choices.append(Choice("ranks", f"{label}, shard", how, f"asked for: as its {CONDITIONS} say"))


def _plain(condition: Any) -> Callable[[str, nn.Module], bool]:
    """A condition that was listed in the body of its class is a `staticmethod` still."""
    found: Callable[[str, nn.Module], bool] = condition.__func__ if isinstance(condition, staticmethod) else condition
    return found


def _in_parts(block: nn.Module, axis: Axis) -> list[Shard]:
    """Leave this rank its part of every parameter of `block`."""
    shards = []
    for module in list(block.modules()):
        for key, parameter in list(module.named_parameters(recurse=False)):
            shards.append(Shard(module, key, 0, tuple(parameter.shape)))
            start, stop = Cut(axis.index, axis.size).span(len(parameter))
            setattr(module, key, nn.Parameter(parameter.detach()[start:stop].clone(), requires_grad=False))
    return shards


def compile_blocks(
    stacks: Mapping[str, ContractStack], passed: Passed, rack: Rack, backend: str | Backend = "inductor"
) -> None:
    """Every block is compiled when it first runs; blocks of one kind share their code, which `backend` makes. With
    something on the `rack` they run as they are.
    """
    for label, stack in stacks.items():
        for block in stack.each:
            block.inner.compile(dynamic=True, backend=backend)
            block.changed = rack.full
        passed.choices.append(Choice("compile", label, "blocks", "asked for"))


def step_cache(stacks: Mapping[str, ContractStack], place: Place, passed: Passed) -> None:
    """A step cache around every stack of blocks."""
    for label, stack in stacks.items():
        stack.runner = StepCache(place.config.cache, inner=stack.runner)
        stack.whole = True
        if why := too_few(stack.runner.default, len(stack.blocks())):
            raise ConfigError(f"{label}: {why}")
        passed.choices.append(Choice("cache", label, place.config.cache.kind, "asked for"))


def room_for(place: Place) -> torch.device:
    """Where a pipeline is made: what will wait elsewhere must not fill the device first."""
    return place.device if place.config.offload.mode == "none" else torch.device("cpu")
