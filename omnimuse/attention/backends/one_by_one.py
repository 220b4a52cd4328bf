"""A backend around another that gives every row of a batch its own call, so that no row's bits depend on the others.

Put around a site's backend by the build when the tier is "invariant": how a kernel shares out its work among threads
depends on the size of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnimuse.attention.backends.rows import row_by_row
from omnimuse.attention.layout import Layout

if TYPE_CHECKING:
    from omnimuse.attention.layer import Backend


class OneByOne:
    """The `inner` backend, one row at a time."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.weighs = inner.weighs

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return self.inner.why_not(device, dtype, head_dim)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        return row_by_row(self.inner, q, k, v, layout, kv_layout)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.inner.weigh(*row) for row in zip(q.split(1), k.split(1), v.split(1), strict=True)]
        return torch.cat([out for out, _ in parts]), torch.cat([weight for _, weight in parts])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if len(q) == 1:
            return self.inner(q, k, v, mask)
        if mask is not None:
            mask = mask.expand(len(q), *mask.shape[1:]) if mask.ndim == 4 else mask.expand(len(q), 1, *mask.shape[-2:])
        masks = [None] * len(q) if mask is None else mask.split(1)
        rows = zip(q.split(1), k.split(1), v.split(1), masks, strict=True)
        return torch.cat([self.inner(*row) for row in rows])
