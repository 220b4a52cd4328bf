"""An adapter as data: low-rank products that are added to what linear layers make, by the site of the layer.

Made by `loader/adapters.py` from a file, worn by `linear.py`. Knows nothing of files, names or requests.

Letters: R rank, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Site = tuple[str, str]
"""A component, and the path of a linear layer in it."""


@dataclass(frozen=True)
class Product:
    """One low-rank product: `up` [N, R] times `down` [R, K], for the N outputs of its layer from `start` on; without a
    `down` `up` [N, K] is a whole difference.

    `bias` [N] is added besides, where an adapter has one.
    """

    down: Tensor | None
    up: Tensor
    start: int = 0
    bias: Tensor | None = None

    def add(self, out: Tensor, x: Tensor, scale: float, total: Callable[[Tensor], Tensor] | None = None) -> None:
        """Add to `out` [..., outputs of the layer] what this makes of `x` [..., K]. Of which every rank has a part, if
        there is a `total` of what all ranks make of theirs.
        """
        part = out.narrow(-1, self.start, len(self.up))
        low = x if self.down is None else F.linear(x, self.down)
        if total is None:
            part.add_(F.linear(low, self.up, self.bias), alpha=scale)
        elif self.down is None:
            made = total(F.linear(low, self.up))
            part.add_(made if self.bias is None else made + self.bias, alpha=scale)
        else:
            part.add_(F.linear(total(low), self.up, self.bias), alpha=scale)

    @property
    def rank(self) -> int:
        """R; of a whole difference the smaller one of N and K."""
        return min(self.up.shape) if self.down is None else self.up.shape[1]

    def fill(self, down: Tensor, up: Tensor) -> None:
        """Write it into `down` [R, K] and `up` [N, R], which are zeros: of a whole difference one of them is ones."""
        if self.down is not None:
            down.copy_(self.down)
            up.copy_(self.up)
        elif len(down) == down.shape[1]:
            down.diagonal().fill_(1)
            up.copy_(self.up)
        else:
            down.copy_(self.up)
            up.diagonal().fill_(1)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        return [tensor for tensor in (self.down, self.up, self.bias) if tensor is not None]


@dataclass(frozen=True, eq=False)
class Adapter:
    """The products of one file that are for layers of this process, by site. `id` tells it from all others, also from
    the same file changed. It changes something in these `components`, wherever they are.
    """

    id: str
    products: Mapping[Site, tuple[Product, ...]]
    components: frozenset[str] = frozenset()

    @cached_property
    def nbytes(self) -> int:
        """The memory it takes. Products of one layer of the file may share a `down`."""
        products = (product for products in self.products.values() for product in products)
        return sum({id(tensor): tensor.nbytes for product in products for tensor in product.tensors}.values())


@dataclass(frozen=True)
class Worn:
    """An adapter with the scale that a request gives it."""

    adapter: Adapter
    scale: float

    @property
    def key(self) -> tuple[str, float]:
        """What must be equal for two rows to share a forward."""
        return self.adapter.id, self.scale


class Joined(NamedTuple):
    """What one layer wears as one product: `up` [N, R] times `scale` [R] times `down` [R, K], and `bias` [N].

    The tensors say of themselves that R alone may be another next time; no two layers share one.
    """

    down: Tensor
    scale: Tensor
    up: Tensor
    bias: Tensor

    @staticmethod
    def bytes_of(weight: Tensor, products: Sequence[Product]) -> int:
        """What one takes for a layer with weights like `weight` [N, K] that has these `products`."""
        (outputs, inputs), rank = weight.shape, max(2, sum(product.rank for product in products))
        return (rank * (inputs + outputs + 1) + outputs) * weight.dtype.itemsize

    @staticmethod
    def of(weight: Tensor, worn: Sequence[tuple[Worn, Sequence[Product]]]) -> Joined:
        """For a layer with weights like `weight` [N, K], perhaps on meta, which has these products of what is worn."""
        parts = [(product, each.scale) for each, products in worn for product in products]
        any_one = next(iter(worn[0][0].adapter.products.values()))[0].up  # other layers may be of another format
        zeros = partial(torch.zeros, dtype=weight.dtype, device=any_one.device)
        (outputs, inputs), rank = weight.shape, max(2, sum(product.rank for product, _ in parts))
        down, scale, up, bias, at = zeros(rank, inputs), zeros(rank), zeros(outputs, rank), zeros(outputs), 0
        for product, strength in parts:
            mine, rows = slice(at, at + product.rank), slice(product.start, product.start + len(product.up))
            product.fill(down[mine], up[rows, mine])
            scale[mine] = strength
            if product.bias is not None:
                bias[rows] += product.bias * strength
            at = mine.stop
        for tensor, dim in ((down, 0), (scale, 0), (up, 1)):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
        for tensor, dim in ((down, 1), (up, 0), (bias, 0)):
            torch._dynamo.mark_static(tensor, dim)
        return Joined(down, scale, up, bias)

    def added(self, out: Tensor, x: Tensor) -> Tensor:
        """`out` [..., N] with what this makes of `x` [..., K]."""
        return out + (F.linear(F.linear(x, self.down) * self.scale, self.up) + self.bias)
