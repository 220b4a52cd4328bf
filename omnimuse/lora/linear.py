"""A linear layer that wears adapters: its own product, and after it those of the adapters that are on.

`adapters.py` puts one in the place of every layer that an adapter is for. With nothing on it computes what the layer
alone does, to the bit; the layer's weights are never touched.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from omnimuse.lora.adapter import Site, Worn


class Rack:
    """What the layers of one engine's networks wear at this moment: nothing, outside of `Adapters.wearing`."""

    def __init__(self) -> None:
        self.worn: tuple[Worn, ...] = ()

    def full(self) -> bool:
        """Whether there is anything."""
        return bool(self.worn)


@runtime_checkable
class Summing(Protocol):
    """A layer that has some of the inputs only, as ranks may."""

    def total(self, part: Tensor) -> Tensor:
        """What all ranks made of their inputs, added up."""
        ...


class Adapted(nn.Module):
    """The layer `base` at `site`, and what is on the `rack` for that site. Names of its weights stay those of `base`
    to whoever asks the layer for them.
    """

    def __init__(self, base: nn.Module, site: Site, rack: Rack) -> None:
        super().__init__()
        self.base = base
        self.site = site
        self.rack = rack

    @property
    def weight(self) -> Any:
        """The weight of the layer itself."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the layer itself."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        total = self.base.total if isinstance(self.base, Summing) else None
        for worn in self.rack.worn:
            for product in worn.adapter.products.get(self.site, ()):
                product.add(out, x, worn.scale, total)
        return out
