"""What is done to the networks of a pipeline of the contract once they have their weights, as their declarations allow.

The order is that of `worker/build.py`: weights in parts or away from the device, compiled blocks, tokens shared among
ranks, and around all that a step cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from omnimuse.cache.stepcache import StepCache, too_few
from omnimuse.compat.contract.blocks import DECLARED, ContractStack, stacked
from omnimuse.compat.contract.offloaded import Passed, offload, planned, take_turns
from omnimuse.compat.contract.tokens import share_tokens
from omnimuse.compat.door import Place
from omnimuse.compat.vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from omnimuse.core.caches import KINDS, Fits
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError
from omnimuse.core.plans import Cut
from omnimuse.core.plugins import CACHES, brought
from omnimuse.layers.compiled import Backend
from omnimuse.lora.linear import Rack
from omnimuse.parallel.mesh import SEQUENCE, Axis, Mesh
from omnimuse.parallel.shard import Shard, ShardRunner

AWAY = "enable_layerwise_offload"
CONDITIONS = "_hsdp_shard_conditions"
SHARING = ColumnParallelLinear | RowParallelLinear
"""Layers of which ranks hold a part each, but for those that say that each has all (`disable_tp`)."""


Sharing = Callable[[nn.Module, Mesh], list[Choice]]
"""(pipeline, mesh): its networks share tokens among ranks from now on."""


def transform(pipe: nn.Module, place: Place, sharing: Sharing = share_tokens, parts: nn.Module | None = None) -> Passed:
    """All of it; on the way everything of `pipe` that stays on the device gets there.

    Those of `parts` take turns, where parts do, which are its own if nobody says so.
    """
    config, passed, whole = place.config, Passed(), pipe if parts is None else parts
    sharded, away = config.parallel.shard > 1, config.offload.mode == "layers"
    asked = {
        AWAY: away,
        "use_hsdp": sharded,
        "enforce_eager=False": config.compile.mode != "none",
        "cache_backend": config.cache.kind != "none",
    }
    if any(asked.values()):
        stacks = stacked(pipe)
        needing = [name for name, there in asked.items() if there and not (name == AWAY and planned(pipe))]
        if needing and not stacks:
            raise ConfigError(
                f"{needing[0]} cannot be: no network of {type(pipe).__name__} says what its blocks are; give it "
                f"{' or '.join(DECLARED)}"
            )
        if away:
            offload(pipe, stacks, place, passed)
        if sharded:
            keep_parts(pipe, stacks, place, passed)
        if config.compile.mode != "none":
            compile_blocks(stacks, passed, place.rack)
        if config.cache.kind != "none":
            step_cache(stacks, place, passed)
    if config.offload.mode == "components":
        take_turns(dict(whole.named_children()), place, passed)
    whole._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(place.device))
    if place.mesh.axis(SEQUENCE).size > 1:
        passed.choices += sharing(pipe, place.mesh)
    return passed


def refuse_whole_weights(name: str, whole: nn.Module, ranks: int) -> None:
    """ConfigError for ranks that would hold the same weights each."""
    if ranks > 1 and not any(isinstance(part, SHARING) and part.tp_size > 1 for part in whole.modules()):
        raise ConfigError(
            f"tensor={ranks} cannot be: no network of {name} has layers that ranks share; build it of the guide's "
            "linear layers, or leave it out"
        )


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
    """A step cache around every stack of blocks: of the kinds that go by nothing that was measured of a model."""
    fits = Fits(only=("dbcache", *brought(CACHES, KINDS)))
    for label, stack in stacks.items():
        stack.runner = StepCache(place.config.cache, fits, stack.runner)
        stack.whole = True
        if why := too_few(stack.runner.default, len(stack.blocks())):
            raise ConfigError(f"{label}: {why}")
        passed.choices.append(Choice("cache", label, place.config.cache.kind, "asked for"))


def room_for(place: Place) -> torch.device:
    """Where a pipeline is made: what will wait elsewhere must not fill the device first."""
    return place.device if place.config.offload.mode == "none" else torch.device("cpu")
