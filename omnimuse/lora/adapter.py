"""An adapter as data: low-rank products that are added to what linear layers make, by the site of the layer.

Made by `loader/adapters.py` from a file, worn by `linear.py`. Knows nothing of files, names or requests.

Letters: R rank, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Site = tuple[str, str]
"""A component, and the path of a linear layer in it."""


@dataclass(frozen=True)
class Product:
    """One low-rank product: `up` [N, R] times `down` [R, K], for the N outputs of its layer from `start` on.

    `bias` [N] is added besides, where an adapter has one.
    """

    down: Tensor
    up: Tensor
    start: int = 0
    bias: Tensor | None = None

    def add(self, out: Tensor, x: Tensor, scale: float, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add to `out` [..., outputs of the layer] what this makes of `x` [..., K]. Of which every rank has a part, if
        there is a `total` of what all ranks make of theirs.
        """
        low = F.linear(x, self.down)
        if total is not None:
            low = total(low)
        part = out.narrow(-1, self.start, len(self.up))
        part.add_(F.linear(low, self.up, self.bias), alpha=scale)

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        return self.down.nbytes + self.up.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The products of one file, by site. `id` tells it from all others, also from the same file changed. `within` are
    components that the sites' are parts of, where another pipeline has them.
    """

    id: str
    products: Mapping[Site, tuple[Product, ...]]
    within: frozenset[str] = frozenset()

    @property
    def nbytes(self) -> int:
        """The memory it takes."""
        return sum(product.nbytes for products in self.products.values() for product in products)

    @property
    def components(self) -> frozenset[str]:
        """The components that it changes something in."""
        return frozenset(component for component, _ in self.products) | self.within


@dataclass(frozen=True)
class Worn:
    """An adapter with the scale that a request gives it."""

    adapter: Adapter
    scale: float

    @property
    def key(self) -> tuple[str, float]:
        """What must be equal for two rows to share a forward."""
        return self.adapter.id, self.scale
