"""The seam between a model and everything that changes how its blocks are run.

A model puts its blocks into a `BlockStack` and calls it. Build passes set the stack's `runner`: a step cache,
layerwise offload, block pipeline parallelism or a compiled stack is a runner, or wraps one, and none needs to
know the model. What a runner remembers from step to step lives in a `Memory` that the request's state owns,
never on a module.

Packed hidden states are [R, S, D] or [1, T, D]; see `attention/layout.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut


class Conditioning(Protocol):
    """All that blocks need beside the hidden states. Models define their own, as a frozen dataclass.

    Its tensors are packed, [R, S, *] or [1, T, *] with a width, or hold one vector per row or span, [P, D].
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def dense(self) -> bool:
        """Whether the rows are alike in every length, so that blocks need not tell them apart."""
        ...

    def select(self, rows: Sequence[int]) -> Self:
        """The same for only those rows, which the host must not wait for: no index that is uploaded."""
        ...

    def cut(self, part: Cut) -> Self | None:
        """The same for only that part of every row's tokens, as `Layout.cut` and `Layout.share` have it.

        None where they cannot be cut: then every rank runs all of them.
        """
        ...


@runtime_checkable
class Counting(Protocol):
    """Conditioning that counts the blocks which have run, as what it has for each is another."""

    def after(self, blocks: int) -> Any:
        """The same for a run that begins behind so many of the blocks that are here."""
        ...


def behind(cond: Conditioning, blocks: int) -> Any:
    """`cond` for a run that begins behind so many of the blocks that are here."""
    return cond.after(blocks) if isinstance(cond, Counting) else cond


@runtime_checkable
class Overhearing(Protocol):
    """Conditioning in which some block leaves hidden states for others than the blocks behind it."""

    def overheard(self) -> Sequence[Tensor]:
        """Where it leaves them; what lies there before counts for nothing."""
        ...


Cond = TypeVar("Cond", bound=Conditioning)

Piece = Callable[..., Any]
"""A function of modules, whose weights it uses, and tensors, packed ones: rows and tokens are of any number."""


class Block(nn.Module, Generic[Cond]):
    """One repeated part of a network. Rows do not see each other in it, nor tokens but in attention, unless it says so
    (`mixes_tokens`): then ranks cannot share the tokens of a row.
    """

    mixes_tokens: ClassVar[bool] = False
    pieces: ClassVar[tuple[Piece, ...]] = ()
    """Which functions a compiler is given instead of the whole, where what is done between them is not for it; a block
    calls them by `piece`.
    """
    compiled: Mapping[Piece, Piece] = MappingProxyType({})

    def piece(self, piece: Piece) -> Piece:
        """That one of the `pieces`, or what was compiled of it, if that is to run."""
        return self.compiled.get(piece, piece)

    def forward(self, hidden: Tensor, cond: Cond) -> Tensor:
        """Packed hidden states in, packed hidden states of the same shape out."""
        raise NotImplementedError

    def probe(self, hidden: Tensor, cond: Cond) -> Tensor:
        """What a step cache watches to see how much this step differs from the last; as large as `hidden`, and packed
        like it. Zeros have no part in the comparison.
        """
        return hidden

    def telling(self, change: Tensor, cond: Cond) -> Tensor:
        """What of a change to the hidden states, packed like them, a step cache compares between steps; without any
        weights. Zeros have no part in the comparison.
        """
        return change


@runtime_checkable
class Movable(Protocol):
    """A remembered thing that holds tensors. Tensors are movable too."""

    def to(self, device: torch.device) -> Any: ...


@dataclass
class Memory:
    """What runners remember for one state, one network and one guidance branch.

    The loop sets `step` (0-based) and `steps` (how many this network will take for this state), `at` and `of`, the same
    of all networks together, and which step `cache` the request chose (None: the engine's). Each runner keeps its own
    entries in `data` under its own name.
    """

    step: int = 0
    steps: int = 1
    at: int = 0
    of: int = 1
    cache: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device) -> None:
        """Move every tensor that is remembered, for instance to the CPU when the state is paused."""
        for name, value in self.data.items():
            if isinstance(value, Movable):
                self.data[name] = value.to(device)


class StackRunner(Protocol):
    """How the blocks of a stack are run. A runner that wraps another passes on what it does not change.

    One that runs some of the blocks tells a conditioning that is `Counting` which (`behind`).
    """

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        """Run the blocks in order. `memories` has one entry per row; None: nothing may be remembered."""
        ...

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        """The first block's probe, wherever its weights are."""
        ...


class PlainRunner:
    """One block after the other."""

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        for block in blocks:
            hidden = block(hidden, cond)
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return blocks[0].probe(hidden, cond)


class BlockStack(nn.ModuleList):
    """The blocks of a network, and the runner that runs them; `instead` of some, it calls one of others."""

    def __init__(self, blocks: Iterable[Block[Any]] = ()) -> None:
        super().__init__(blocks)
        self.runner: StackRunner = PlainRunner()
        self.instead: Mapping[nn.Module, Sequence[nn.Module]] = MappingProxyType({})

    def blocks(self) -> list[Block[Any]]:
        """The blocks, in the order they run."""
        return cast("list[Block[Any]]", list(self))

    def forward(self, hidden: Tensor, cond: Conditioning, memories: Sequence[Memory] | None = None) -> Tensor:
        return self.runner(self.blocks(), hidden, cond, memories)


class ChainedStack(BlockStack):
    """A stack of several kinds of blocks, one list per kind: they run, and are skipped or moved, as one.

    The lists keep the names they are given under, so that each kind has its own names among the weights.
    """

    def __init__(self, lists: Mapping[str, Iterable[Block[Any]]]) -> None:
        super().__init__()
        for name, blocks in lists.items():
            self.add_module(name, nn.ModuleList(blocks))

    def blocks(self) -> list[Block[Any]]:
        """The blocks of the first list, then those of the next."""
        return [block for blocks in self for block in cast("list[Block[Any]]", blocks)]
