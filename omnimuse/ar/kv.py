"""What a decoder remembers of the tokens it has read, and what it is given to read next.

A `KV` is a slot of one state, so it is parked, woken and let go of like all others. What it remembers lies beside that
of other rows, in a `Slab`, so that all that write at the same time can attend in one call. Networks write behind the
length that the loop has committed; who reads again after a failure writes the same again.

Letters: L layers, R places for rows, N heads of keys and values, H head dim, S tokens of one row, V words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from omnimuse.core.plans import Grouped, Span
from omnimuse.layers.network import Network

LEAST = 64
"""Tokens that any memory has room for."""
UNKNOWN = (0,)
"""In the place of a token that is on the device alone."""
KEPT = 8
"""What is remembered at most of how rows lie together: those that write are the same for many tokens."""

Made = TypeVar("Made")


def numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """int64 [n] on `device`, all in one upload, which does not wait for what the device has to do before."""
    return torch.tensor(values, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


@dataclass(frozen=True)
class Sizes:
    """What a token takes in the memory of a network: [L, 2, *, N, *, H], of its layers from the `first` on."""

    layers: int
    heads: int
    dim: int
    dtype: torch.dtype
    first: int = 0

    @property
    def token_bytes(self) -> int:
        """Of one token of one row."""
        return self.layers * 2 * self.heads * self.dim * self.dtype.itemsize

    def empty(self, places: int, room: int, device: torch.device) -> Tensor:
        """Zeros, [L, 2, places, N, room, H]: what was never written is masked, but looked at, so these are numbers."""
        shape = (self.layers, 2, places, self.heads, room, self.dim)
        return torch.zeros(shape, dtype=self.dtype, device=device)


class Slab:
    """One memory for all rows that need about as much of it. Places for rows double when they run out; when the last
    row has gone, so has the memory.
    """

    def __init__(self, sizes: Sizes, room: int, device: torch.device) -> None:
        self.sizes, self.room, self.device = sizes, room, device
        self.data = sizes.empty(0, room, device)  # [L, 2, R, N, room, H]
        self._taken: list[bool] = []
        self._kept: dict[Hashable, Any] = {}

    @property
    def places(self) -> int:
        return len(self._taken)

    def take(self) -> Place:
        """The first free place; what the row before left there is gone.

        While memory is made, garbage may be collected, and with it the last of the other rows (`give`): what was there
        is held until then, and a place is taken before anything else is done with it.
        """
        if False not in self._taken:
            old = self.data
            data = self.sizes.empty(max(1, 2 * old.shape[2]), self.room, self.device)
            data[:, :, : old.shape[2]] = old
            self.data = data
            self._kept.clear()
            self._taken += [False] * (data.shape[2] - self.places)
        index = self._taken.index(False)
        self._taken[index] = True
        self.data[:, :, index] = 0  # numbers that are none would reach the next row through its mask
        return Place(self, index)

    def give(self, index: int) -> None:
        """The row at this place has gone."""
        self._taken[index] = False
        if True not in self._taken:
            self.data, self._taken = self.sizes.empty(0, self.room, self.device), []
            self._kept.clear()

    def kept(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once for each `key` while the memory is the same."""
        if key not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = make()
        found: Made = self._kept[key]
        return found


class Place:
    """Where a row lies in a slab: it is free again when nobody has this any more, as memory of a tensor is."""

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab, self.index = slab, index

    def __del__(self) -> None:
        self.slab.give(self.index)


class Slabs:
    """The memory of all rows of a network: a slab for each room, which is a power of two, on each device."""

    def __init__(self) -> None:
        self._slabs: dict[tuple[Sizes, int, torch.device], Slab] = {}

    def take(self, sizes: Sizes, tokens: int, device: torch.device) -> Place:
        """A place with room for so many tokens."""
        room = max(LEAST, 1 << (tokens - 1).bit_length())
        key = sizes, room, device
        if key not in self._slabs:
            self._slabs[key] = Slab(sizes, room, device)
        return self._slabs[key].take()


class KV:
    """Keys and values of one row: at a place in a slab, or, where it was moved away from there, in a tensor `own`.

    Of the heads that the network has on all ranks together, the `whole`, those of this rank are here, and of its layers
    those from the `first` on.
    """

    def __init__(
        self, slabs: Slabs, place: Place | None, whole: Grouped, own: Tensor | None = None, first: int = 0
    ) -> None:
        self._slabs, self.place, self.whole, self._own = slabs, place, whole, own
        self.first = first if place is None else place.slab.sizes.first

    @property
    def slab(self) -> tuple[Tensor, int]:
        """The memory [L, 2, R, N, room, H] that this row is in, and where among the R."""
        if self.place is not None:
            return self.place.slab.data, self.place.index
        assert self._own is not None
        return self._own, 0

    @property
    def data(self) -> Tensor:
        """Of this row alone, [L, 2, N, room, H]."""
        data, index = self.slab
        return data[:, :, index]

    def of(self, layer: int) -> Tensor:
        """Of one layer, by its number in the network: [2, N, room, H]."""
        return self.data[layer - self.first]

    @property
    def room(self) -> int:
        """How many tokens there is room for."""
        return self.slab[0].shape[4] if self.place is None else self.place.slab.room

    @property
    def device(self) -> torch.device:
        return self.slab[0].device if self.place is None else self.place.slab.device

    def with_room(self, tokens: int) -> KV:
        """The same with room for so many `tokens`, and perhaps for more."""
        old = self.data
        layers, _, heads, room, dim = old.shape
        place = self._slabs.take(Sizes(layers, heads, dim, old.dtype, self.first), tokens, old.device)
        kv = KV(self._slabs, place, self.whole)
        kv.data[:, :, :, :room] = old
        return kv

    def reserve(self, tokens: int) -> None:
        """Have room for so many `tokens`, whoever else has this memory."""
        if tokens > self.room:
            self.place, self._own = self.with_room(tokens).place, None

    def to(self, other: torch.device | torch.dtype) -> KV:
        """The same on another device, or in another number format, where it lies alone."""
        return KV(self._slabs, None, self.whole, self.data.unsqueeze(2).to(other, copy=True), self.first)


@dataclass(frozen=True)
class Reading:
    """A row of a decoder: the tokens `ids` [S] that come after `start` others, which `kv` remembers.

    A decoder may read what stands for its tokens, [S, D], in their place. Where there are lists of tokens that are
    `forbidden`, which may be empty, nothing is wanted but the likeliest of the others: as many tokens as there are
    lists, each of which but the last is read in its turn.

    Those of a row that is not `causal` see one another all; those of one that does not `keep` are not remembered, so
    that several rows may look at one memory, or at beginnings of it.
    """

    ids: Sequence[int] | Tensor
    start: int
    kv: KV
    forbidden: Sequence[Sequence[int]] = field(default=(), kw_only=True)

    def behind(self) -> Reading:
        """The row that reads the next token, of those that are wanted."""
        return Reading(UNKNOWN, self.start + 1, self.kv, forbidden=self.forbidden[1:])

    @property
    def count(self) -> int:
        """How many tokens are read."""
        return len(self.ids)

    @property
    def given(self) -> Tensor:
        """What is read as a tensor, where the memory is."""
        return self.ids if isinstance(self.ids, Tensor) else numbers(self.ids, self.kv.device)

    @property
    def place(self) -> int:
        """Where the first of them is, for what turns by its place."""
        return self.start

    @property
    def causal(self) -> bool:
        """Whether a token sees none that come after it."""
        return True

    @property
    def keep(self) -> bool:
        """Whether `kv` is to remember these tokens."""
        return True


class Decoder(Network):
    """A network whose rows are `Reading`s; its prediction is what comes after the last token, logits [V], or where
    nothing else is wanted the likeliest tokens, int64 [*] on the CPU, as many as all rows of a forward want.

    Rows that read one token share forwards, and so do those that read more, but not with one another: a token is
    written by other code than a prompt is read by. Products of fewer than `fewest` rows would be filled up, each by
    itself; a network may do so once. What of it cannot be made steady in company is `uneven`, in words. One that
    `draws`, too, by what it has read, has blocks that run as those of other networks that draw: its rows that do not
    `keep` are steps of a loop like theirs.
    """

    fewest: int = 1
    uneven: str = ""
    draws: ClassVar[bool] = False

    packing: ClassVar[Literal["stack", "pad", "varlen", "tokens"]] = "tokens"

    def __init__(self) -> None:
        super().__init__()
        self.slabs = Slabs()

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """What a token takes in the memory."""

    @property
    def most(self) -> Sizes:
        """The same on the rank on which it takes most."""
        return self.sizes

    def keep_layers(self, spans: Sequence[Span], at: int) -> None:
        """From now on only those layers are here, and remembered, that rank number `at` of those with these has."""

    @property
    @abstractmethod
    def whole(self) -> Grouped:
        """The heads that all ranks have together."""

    def memory(self, room: int, device: torch.device) -> KV:
        """An empty memory with room for so many tokens, and perhaps for more."""
        return KV(self.slabs, self.slabs.take(self.sizes, room, device), self.whole)
