"""A linear layer that wears adapters: its own product, and after it those of the adapters that are on.

`adapters.py` puts one in the place of every layer that an adapter is for. With nothing on it computes what the layer
alone does, to the bit; the layer's weights are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from omnimuse.lora.adapter import Joined, Product, Site, Worn

Keys = tuple[tuple[str, float], ...]
"""A set of adapters, by what rows must have equal: adapters by name, since who wears them keeps them alive."""


class Rack:
    """What the layers of one engine's networks wear at this moment: nothing, outside of `Adapters.wearing`.

    `compiled` are those of compiled blocks. What these wear is `joined` while they run, one product for each, so that
    the compiled code is the same for every set of adapters; but where it `joins` none, as such requests run past it.
    Sets that are worn in turns stay joined, as far as there is room (`keep`).
    """

    def __init__(self) -> None:
        self.worn: tuple[Worn, ...] = ()
        self.compiled: dict[Site, Adapted] = {}
        self.joins = True
        self._sets: dict[Keys, Mapping[Site, Joined]] = {}  # the one worn last is last
        self.room = 0
        self.wanted: Container[str] = ()

    def full(self) -> bool:
        """Whether there is anything."""
        return bool(self.worn)

    def joined_bytes(self, products: Mapping[Site, Sequence[Product]]) -> int:
        """What these take joined in all compiled layers: also in those that have none of them."""
        layers = self.compiled.items() if self.joins else ()
        return sum(Joined.bytes_of(layer.like, products.get(site, ())) for site, layer in layers)

    @property
    def nbytes(self) -> int:
        """The memory of all sets that are joined."""
        return sum(map(_nbytes, self._sets.values()))

    def forget(self) -> None:
        """Let go of all sets that are joined."""
        self._sets.clear()

    def keep(self, room: int, wanted: Container[str]) -> None:
        """From now on joined sets have so much room, beside the largest of adapters that are `wanted`, by name: that
        one is counted with what wears it.
        """
        self.room, self.wanted = max(0, room), wanted
        self._let_go()

    @contextmanager
    def joining(self) -> Iterator[None]:
        """For the length of a `with` block compiled layers find what they wear joined. That is remembered.

        An adapter that is for no layer of this process is not worn meanwhile: there is nothing of it to join.
        """
        everything, self.worn = self.worn, tuple(each for each in self.worn if each.adapter.products)
        try:
            self._hang()
            yield
        finally:
            self.worn = everything
            for layer in self.compiled.values():
                layer.peg.joined = None

    def _hang(self) -> None:
        """Let compiled layers find what is worn joined, if anything is."""
        if not self.worn:
            return
        keys = tuple(each.key for each in self.worn)
        found = self._sets.pop(keys, None)
        if found is None:
            self._let_go(self._size())  # its memory first
            found = {site: layer.join(self.worn) for site, layer in self.compiled.items()}
        self._sets[keys] = found
        for site, joined in found.items():
            self.compiled[site].peg.joined = joined

    def _size(self) -> int:
        """What a set of what is worn takes."""
        products: dict[Site, list[Product]] = {}
        for each in self.worn:
            for site, some in each.adapter.products.items():
                products.setdefault(site, []).extend(some)
        return self.joined_bytes(products)

    def _let_go(self, coming: int = 0) -> None:
        """Let go of sets until there is room for the others, and for one of so many bytes that comes: first of those
        that nobody wants, then of the one worn last, as sets that are worn in turns come again the later.
        """
        sizes = {keys: _nbytes(each) for keys, each in self._sets.items()}
        wanted = [keys for keys in sizes if all(name in self.wanted for name, _ in keys)]
        going = [*(keys for keys in sizes if keys not in wanted), *reversed(wanted)]
        while going:
            counted = max([coming, *(sizes[keys] for keys in wanted if keys in sizes)])
            if coming + sum(sizes.values()) - counted <= self.room:
                return
            del self._sets[going[0]], sizes[going.pop(0)]


def _nbytes(joined: Mapping[Site, Joined]) -> int:
    return sum(tensor.nbytes for each in joined.values() for tensor in each)


@dataclass(eq=False)
class Peg:
    """The place on the `rack` of the layer at `site`: what hangs there is added to what the layer makes, `joined` while
    compiled blocks run. These do not ask for the site, or each of them would be compiled for its own.
    """

    site: Site
    rack: Rack
    joined: Joined | None = None

    def add(
        self, out: Tensor, x: Tensor, total: Callable[[Tensor], Tensor] | None = None, *, bias: bool = True
    ) -> None:
        """Add it to `out`, which the layer made of `x`; `total` as in `Product.add`. Without a `bias` only products."""
        for worn in self.rack.worn:
            for product in worn.adapter.products.get(self.site, ()):
                (product if bias else replace(product, bias=None)).add(out, x, worn.scale, total)


@runtime_checkable
class Summing(Protocol):
    """A layer that has some of the inputs only, as ranks may."""

    def total(self, part: Tensor) -> Tensor:
        """What all ranks made of their inputs, added up."""
        ...


@runtime_checkable
class Packed(Protocol):
    """A layer that has its weights in another form."""

    def like(self) -> Tensor:
        """A tensor on meta of the shape and format of its weights."""
        ...


class Adapted(nn.Module):
    """The layer `base` at `site`, and what is on the `rack` for that site. Names of its weights stay those of `base`
    to whoever asks the layer for them.
    """

    def __init__(self, base: nn.Module, site: Site, rack: Rack) -> None:
        super().__init__()
        self.base = base
        self.peg = Peg(site, rack)

    @property
    def weight(self) -> Any:
        """The weight of the layer itself."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the layer itself."""
        return self.base.bias

    @property
    def like(self) -> Tensor:
        """A tensor of the shape and format of its weights, perhaps on meta."""
        like: Tensor = self.base.like() if isinstance(self.base, Packed) else self.weight
        return like

    def join(self, worn: Sequence[Worn]) -> Joined:
        """The product of all that is worn here, of rank 2 at the least, which the compiler takes for any rank."""
        return Joined.of(self.like, [(each, each.adapter.products.get(self.peg.site, ())) for each in worn])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if (joined := self.peg.joined) is not None:
            return joined.added(out, x)
        total = self.base.total if isinstance(self.base, Summing) else None
        self.peg.add(out, x, total)
        return out
