"""A backend around another that gives every row of a batch its own call, so that no row's bits depend on the others.

Put around a site's backend by the build when the tier is "invariant": how a kernel shares out its work among threads
depends on the size of the batch. Few queries are filled up: torch's kernel gives each thread working memory for as many
as there are, up to 32, and rounds by where that lies, so by the thread that has the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.attention.backends.rows import row_by_row
from omnimuse.attention.layout import Layout

if TYPE_CHECKING:
    from omnimuse.attention.layer import Backend


FEW = 32  # queries; as many as torch's kernel computes in a piece
FILLED = 64  # what so few are filled up to: two pieces, so that no thread is alone with one


class OneByOne:
    """The `inner` backend, one row at a time; few queries are filled up where `fills`."""

    def __init__(self, inner: Backend, *, fills: bool = True) -> None:
        self.inner = inner
        self.fills = fills
        self.name = inner.name
        self.weighs = inner.weighs

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        return self.inner.why_not(device, dtype, head_dim)

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        return row_by_row(self, q, k, v, layout, kv_layout)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.inner.weigh(*row) for row in zip(q.split(1), k.split(1), v.split(1), strict=True)]
        return torch.cat([out for out, _ in parts]), torch.cat([weight for _, weight in parts])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if len(q) == 1:
            return self._row(q, k, v, mask)
        if mask is not None:
            mask = mask.expand(len(q), *mask.shape[1:]) if mask.ndim == 4 else mask.expand(len(q), 1, *mask.shape[-2:])
        masks = [None] * len(q) if mask is None else mask.split(1)
        rows = zip(q.split(1), k.split(1), v.split(1), masks, strict=True)
        return torch.cat([self._row(*row) for row in rows])

    def _row(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        count = q.shape[1]
        if not self.fills or count > FEW:
            return self.inner(q, k, v, mask)
        more = FILLED - count
        if mask is not None and mask.shape[-2] > 1:
            mask = F.pad(mask, (0, 0, 0, more), value=mask.dtype == torch.bool)  # what is made of these is left out
        return self.inner(F.pad(q, (0, 0, 0, 0, 0, more)), k, v, mask)[:, :count]
