"""Weights of a pipeline of the contract that wait outside the device: blocks that come one at a time, and parts that
take turns.

Which they are, its networks declare (`blocks.py`), and its `OffloadPlan` does where it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from torch import Tensor, nn

from omnimuse.compat.contract.blocks import ContractStack, Turn
from omnimuse.compat.door import Place
from omnimuse.compat.vllm_omni.diffusion.called import call_behind
from omnimuse.compat.vllm_omni.diffusion.offloader.module_collector import ModuleDiscovery
from omnimuse.compat.vllm_omni.diffusion.offloader.offload_plan import OffloadPlan, get_offload_plan
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError
from omnimuse.loader.tensors import present_tensors
from omnimuse.offload.host import store_beside
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Away
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import Store
from omnimuse.offload.visited import visit

CALLED = ("forward", "encode", "decode")
"""Methods of a pipeline's part that compute with its weights."""

NOTHING = OffloadPlan()


@dataclass
class Passed:
    """What the passes chose, and what is to be closed with the engine."""

    choices: list[Choice] = field(default_factory=list)
    closes: list[Callable[[], None]] = field(default_factory=list)


def offload(pipe: nn.Module, stacks: Mapping[str, ContractStack], place: Place, passed: Passed) -> None:
    """Blocks come to the device one at a time, and what the plan says is there on demand comes when it is called."""
    store = _store(place, passed)
    for label, stack in stacks.items():
        home = _away(stack, place, store, stack.blocks())
        home.rest.enter()  # what several blocks share stays
        _wait(home)
        stack.runner = LayerwiseOffload(home.blocks)
        passed.choices.append(_one_at_a_time(label, stack.blocks()))
    for label, blocks in planned(pipe).items():
        home = _away(blocks, place, store, list(blocks))
        home.rest.enter()
        _wait(home)
        passed.choices.append(_one_at_a_time(label, list(blocks)))
        visit(blocks, home.blocks)
    there = dict(pipe.named_modules())
    plan = get_offload_plan(pipe) or NOTHING
    _turn({name: there[name] for name in sorted(plan.on_demand_component_paths) if name in there}, place, store, passed)


def take_turns(parts: Mapping[str, nn.Module], place: Place, passed: Passed) -> None:
    """Each of `parts` comes to the device when one of its `CALLED` methods is called, and leaves for another one."""
    _turn(parts, place, _store(place, passed), passed)


def planned(pipe: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of blocks that a plan names besides those that networks declare, by their names in `pipe`.

    ConfigError for one that is not in its part; a part that a checkpoint has not has none.
    """
    plan, there = get_offload_plan(pipe), dict(pipe.named_modules())
    if plan is None:
        return {}
    named = [(part, attribute) for part, names in plan.block_attrs.items() for attribute in names]
    named += [(part, attribute) for part, names in plan.encoder_block_attrs.items() for attribute in names]
    for part in ModuleDiscovery.discover(pipe).dit_names if plan.offload_submodules else ():
        named += [(f"{part}.{child}", attribute) for child, attribute in plan.offload_submodules.items()]
    found: dict[str, nn.ModuleList] = {}
    for part, attribute in named:
        label = f"{part}.{attribute}"
        if part in there and not (label in there and isinstance(there[label], nn.ModuleList)):
            raise ConfigError(
                f"the OffloadPlan of {type(pipe).__name__} names {label}, which is no list of blocks; correct it"
            )
        if part in there and not _taken(blocks := cast(nn.ModuleList, there[label])):
            found[label] = blocks
    return found


def _taken(blocks: nn.ModuleList) -> bool:
    """Whether a list has no blocks, or has those that its network declares."""
    return not len(blocks) or isinstance(blocks[0], Turn)


def _wait(home: Away) -> None:
    for parcel in home.blocks.values():
        parcel.leave()


def _one_at_a_time(label: str, blocks: Sequence[nn.Module]) -> Choice:
    return Choice("offload", label, f"{len(blocks)} blocks one at a time", "asked for")


def _turn(parts: Mapping[str, nn.Module], place: Place, store: Store, passed: Passed) -> None:
    away = {name: _away(part, place, store, ()).rest for name, part in parts.items() if present_tensors(part)}
    turns = Residency(parts, away)
    for name, parcel in away.items():
        parcel.leave()
        for method in CALLED:
            if hasattr(parts[name], method):
                call_behind(parts[name], method, partial(turns.__getitem__, name))
        passed.choices.append(Choice("offload", name, "comes when it is called", "asked for"))


def _store(place: Place, passed: Passed) -> Store:
    """Where weights wait."""
    store = store_beside(place.device, place.config.offload.folder)
    passed.closes.append(store.close)
    return store


def _away(module: nn.Module, place: Place, store: Store, blocks: Sequence[nn.Module]) -> Away:
    """The home of a module that has its weights, which wait there from now on."""
    stored = present_tensors(module)
    absent = {name: (_absent(tensor), names) for name, (tensor, names) in stored.items()}
    home = Away(module, absent, place.device, store, blocks)
    for name, (tensor, _) in stored.items():
        home.space(name, tensor).copy_(tensor.detach())
    home.seal()
    return home


def _absent(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
