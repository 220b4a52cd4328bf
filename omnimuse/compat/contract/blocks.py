"""Blocks of a network of the contract as a stack of ours, though the network itself has the loop over them.

In the list that it loops over stands a turn for each block. Where blocks are run one at a time (offload, weights in
parts), each turn runs its own, by the stack's runner. Where a runner must see all of them (step caches), the first turn
runs the whole stack, and the others hand on what they are given. That is right only if the network does nothing between
its blocks; its first forward, which is run block by block, tells, and another one is refused.

Letters: B rows, S tokens of all streams that are carried from block to block, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import BoundArguments
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.vllm_omni.diffusion.cache.cachedit import CacheDiTAdapterConfig
from omnimuse.compat.vllm_omni.diffusion.called import StandIn
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cut
from omnimuse.layers.stack import Block, BlockStack, Memory

DECLARED = ("_layerwise_offload_blocks_attrs", "_repeated_blocks")
"""Where a network of the contract says what its blocks are: attributes that hold them, or names of their classes."""

ADAPTED = "_cache_dit_adapter_config"
"""Where it says the same to a step cache."""


@dataclass(frozen=True)
class Carried:
    """What goes from block to block: the arguments that are the outputs of the block before, in the outputs' order.

    `alone`: a block's output is that one tensor, and not a tuple.
    """

    names: tuple[str, ...]
    alone: bool

    def of(self, made: Any) -> tuple[Any, ...]:
        """What of a block's output goes on."""
        return (made,) if self.alone else tuple(made)


@dataclass(frozen=True)
class Rest:
    """The conditioning of such a stack: all that every block is called with, what is carried apart. One row."""

    given: BoundArguments
    carried: Carried
    rows: int
    lengths: tuple[int, ...]

    dense = True

    @cached_property
    def layout(self) -> Layout:
        """One row, of all tokens: such a network tells nobody which of its rows belong together."""
        return Layout((self.rows * sum(self.lengths),))

    def select(self, rows: Sequence[int]) -> Self:
        """The only row."""
        return self

    def cut(self, part: Cut) -> None:
        """Tokens are cut where the network's plan says."""
        return

    def pack(self, streams: Sequence[Tensor]) -> Tensor:
        """Of each stream [B, S_i, D] -> [1, B S, D]."""
        return torch.cat(list(streams), dim=1).flatten(0, 1)[None]

    def unpack(self, hidden: Tensor) -> list[Tensor]:
        """The reverse."""
        return list(hidden[0].unflatten(0, (self.rows, -1)).split(self.lengths, dim=1))


class ContractBlock(Block[Any]):
    """A block as runners see it: called with what its network gave it, or with what is carried, packed.

    While it is `changed`, what was compiled of it is not what it does, and it runs as it is.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.changed: Callable[[], bool] = lambda: False

    def forward(self, hidden: Any, cond: Any) -> Any:
        inner = self.inner.forward if self.changed() else self.inner
        if cond is None:
            return inner(*hidden.args, **hidden.kwargs)
        given = BoundArguments(cond.given.signature, dict(cond.given.arguments))
        given.arguments.update(zip(cond.carried.names, cond.unpack(hidden), strict=True))
        return cond.pack(cond.carried.of(inner(*given.args, **given.kwargs)))


class Turn(StandIn):
    """In the place of a block in the list that the network loops over."""

    def __init__(self, stack: ContractStack, index: int, inner: nn.Module) -> None:
        super().__init__(inner)
        self._place = (stack, index)  # in a tuple, so that the stack is no part of its block

    def called(self, given: BoundArguments) -> Any:
        stack, index = self._place
        return stack.called(index, given)


class ContractStack(BlockStack):
    """Blocks of a network of the contract, and what runs them; `whole` for a runner that must see all of them."""

    def __init__(self, label: str, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.label = label
        self.whole = False
        self.each = tuple(map(ContractBlock, blocks))
        self._carried: Carried | None = None
        self._trail: list[tuple[BoundArguments, Any]] = []
        for index, block in enumerate(blocks):
            self.append(Turn(self, index, block))
        self.instead = {turn: (block,) for turn, block in zip(self, self.each, strict=True)}

    def blocks(self) -> list[Block[Any]]:
        return list(self.each)

    def called(self, index: int, given: BoundArguments) -> Any:
        """What the network gets for the block `index`."""
        if not self.whole:
            return self._one(index, given)
        if index == 0:
            self._trail = []
        if self._carried is not None:
            return self._all(given) if index == 0 else self._handed_on(index, given)
        self._trail.append((given, self._one(index, given)))
        if len(self._trail) != index + 1:
            raise self._refusal(f"it runs the block {index} after {len(self._trail) - 1} others")
        if index + 1 < len(self.each):
            return self._trail[-1][1]
        try:
            self._carried = carried_along(self._trail)
        except ValueError as problem:
            raise self._refusal(str(problem)) from problem
        return self._all(self._trail[0][0])  # once more, so that the first forward remembers what later ones do

    def _one(self, index: int, given: BoundArguments) -> Any:
        return self.runner([self.each[index]], given, None)  # type: ignore[arg-type]

    def _all(self, given: BoundArguments) -> Any:
        assert self._carried is not None
        streams: list[Any] = [given.arguments[name] for name in self._carried.names]
        shapes = {(x.ndim, x.shape[0], x.shape[-1], x.dtype) for x in streams}
        if len(shapes) > 1 or streams[0].ndim != 3:
            shown = [tuple(x.shape) for x in streams]
            raise self._refusal(f"what goes from block to block, {shown}, is not [B, S, D] of one width")
        cond = Rest(given, self._carried, streams[0].shape[0], tuple(x.shape[1] for x in streams))
        memory = self._memory()
        hidden = self.runner(self.blocks(), cond.pack(streams), cast(Any, cond), None if memory is None else [memory])
        out = cond.unpack(hidden)
        made = out[0] if self._carried.alone else tuple(out)
        self._trail = [(given, made)]
        return made

    def _handed_on(self, index: int, given: BoundArguments) -> Any:
        assert self._carried is not None
        made = self._trail[0][1]
        for name, out in zip(self._carried.names, self._carried.of(made), strict=True):
            if given.arguments.get(name) is not out:
                raise self._refusal(f"before its block {index} it changes {name}, as it did not at first")
        if index + 1 == len(self.each):
            self._trail = []
        return made

    def _memory(self) -> Memory | None:
        calls = here("a stack of blocks").calls if inside() else None
        return None if calls is None else calls.next(self.label)

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"{self.label} cannot be run as one, which a step cache needs: {why}. Leave cache_backend out"
        )


def carried_along(trail: Sequence[tuple[BoundArguments, Any]]) -> Carried:
    """What goes from block to block, by a forward that ran them one by one; ValueError if that is not all."""
    found: Carried | None = None
    for number, ((before, made), (given, _)) in enumerate(pairwise(trail), 1):
        outs = made if isinstance(made, tuple) else (made,)
        names = [next((name for name, value in given.arguments.items() if value is out), "") for out in outs]
        if "" in names or not all(isinstance(out, Tensor) for out in outs):
            raise ValueError(f"before its block {number} it changes what the block before gave")
        carried = Carried(tuple(names), not isinstance(made, tuple))
        if found is not None and carried != found:
            raise ValueError(f"its block {number} gets {names}, and others {list(found.names)}")
        found = carried
        for name, value in given.arguments.items():
            if name not in names and not _same(value, before.arguments.get(name)):
                raise ValueError(f"its block {number} gets another {name} than the block before")
    if found is None:
        raise ValueError("it has a single block")
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are one: the same tensor, or another view of the same numbers, or what holds the same."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.is_set_to(other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, int | float | str) and one == other


# -- what a step cache remembers -------------------------------------------------------------------------------------


@dataclass
class Kept:
    """A memory within another one, which goes with it when a state is parked."""

    memory: Memory

    def to(self, device: torch.device) -> Self:
        """Move what is remembered."""
        self.memory.to(device)
        return self


@dataclass
class Calls:
    """One request's step, seen from its networks: every call of a stack is a branch of guidance of its own."""

    memory: Memory
    counts: Counter[str] = field(default_factory=Counter)

    def next(self, label: str) -> Memory:
        """The memory of this call of that stack: it is what the same call of the steps before has left."""
        name = f"{label}/{self.counts[label]}"
        self.counts[label] += 1
        kept = self.memory.data.setdefault(name, Kept(Memory(cache=self.memory.cache)))
        fresh = replace(self.memory, data=kept.memory.data)
        kept.memory = fresh
        return fresh

    def at(self, time: Any) -> None:
        """A network is called at that time: the engine, which has the loop, has said which step it is."""
        return


@dataclass
class OwnLoop(Calls):
    """One output's steps, seen from the networks of a pipeline that has the loop: a call at another time than that of
    the call before is another step's, and those at one time are branches of guidance.
    """

    time: Tensor | None = None

    def at(self, time: Any) -> None:
        now = torch.as_tensor(time).detach().to("cpu", copy=True)
        if self.time is not None and not torch.equal(now, self.time):
            self.memory = replace(self.memory, step=self.memory.step + 1, at=self.memory.at + 1)
            self.counts.clear()
        self.time = now


# -- which blocks there are -------------------------------------------------------------------------------------------


def stacked(pipe: nn.Module) -> dict[str, ContractStack]:
    """Stacks in the place of the lists of blocks that the networks of `pipe` declare, by their names in it."""
    found: dict[str, ContractStack] = {}
    for path, network in list(pipe.named_modules()):
        for attribute in _lists(network):
            owner, _, key = attribute.rpartition(".")
            holder = network.get_submodule(owner)
            label = f"{path}.{attribute}" if path else attribute
            blocks = list(cast("nn.ModuleList", holder.get_submodule(key)))
            if label not in found and blocks and not isinstance(blocks[0], Turn):
                found[label] = ContractStack(label, blocks)
                setattr(holder, key, found[label])
    return found


def _lists(network: nn.Module) -> Iterator[str]:
    """The attributes of a network that hold its lists of blocks, in the order that it declares them."""
    kind = type(network)
    said = [list(getattr(kind, name)) for name in DECLARED if hasattr(kind, name) and getattr(kind, name)]
    if hasattr(kind, ADAPTED) and isinstance(adapted := getattr(kind, ADAPTED), CacheDiTAdapterConfig):
        said.append(list(adapted.block_forward_patterns))
    if not said:
        return
    lists = {name: part for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    named = [name for names in said for name in names if name in lists]
    kinds = {name for names in said for name in names if name not in lists}
    alike = [name for name, part in lists.items() if {type(block).__name__ for block in part} <= kinds]
    yield from dict.fromkeys([*named, *alike])
