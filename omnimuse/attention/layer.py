"""The attention layer that every model uses, and the contract of the kernels behind it.

A model says how many heads there are and what the site is for (`role`); `selection.bind` decides by which
kernel it is computed. The layer has no weights: projections, norms and rotations belong to the model.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layout import Layout
from omnimuse.core.errors import UnsupportedError
from omnimuse.core.plans import Cut, Grouped


class Backend(Protocol):
    """One way to compute softmax(q k^T / sqrt(H)) v."""

    name: str
    weighs: bool
    """Whether it can `weigh`."""

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why this kernel cannot run there, in words, or None if it can."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, S, N, H], [B, K, N, H] twice, and a mask that broadcasts to [B, N, S, K] -> [B, S, N, H]."""
        ...

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        """q [1, T, N, H] of rows of any lengths that lie end to end, k and v by `kv_layout` -> like q."""
        ...

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The outcome in float32, [B, S, N, H], and the logarithm of the sum of what the keys weigh, [B, S, N].

        Outcomes with several sets of keys can be merged by it.
        """
        ...


class Spread(Protocol):
    """A way to attend where the tokens of a row are spread over ranks."""

    def __call__(
        self,
        backend: Backend,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """What is here of q, k and v, packed by a layout that was cut -> like q. Of each row `known` has keys and
        values that every rank has, [2, K, N, H], which all of its tokens see, too.
        """
        ...


class Heads(nn.Module):
    """A part that has heads: `num_heads` here, from `first_head` on, of the `whole` that ranks may share out. Where
    queries share keys, these have `key_heads`, of which no rank has more than `most_heads`.
    """

    def __init__(self, num_heads: int, head_dim: int, key_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.first_head = 0
        self.key_heads = self.most_heads = key_heads or num_heads
        self.whole = Grouped(num_heads, self.key_heads)
        self.head_dim = head_dim

    @property
    def shared(self) -> int:
        """How many of the queries here share each of the keys here."""
        return self.num_heads // self.key_heads

    def keep_heads(self, part: Cut) -> None:
        """From now on only those heads are here that `part` has of the whole."""
        (self.first_head, end), (first, last) = self.whole.spans(part)
        self.num_heads, self.key_heads = end - self.first_head, last - first
        start, stop = self.whole.spans(replace(part, at=0))[1]
        self.most_heads = stop - start


class Attention(Heads):
    """One attention site. `role` and, failing that, `category` are the names a configuration can address it
    by. Models ask it how many heads it has here, and repeat keys that queries share. One that always `masks` says so
    before it is bound; `maskless` is why its backend takes no mask, of one that does not.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        role: str = "self",
        category: str | None = None,
        *,
        key_heads: int | None = None,
    ) -> None:
        super().__init__(num_heads, head_dim, key_heads)
        self.role = role
        self.category = category
        self.backend: Backend = Sdpa()
        self.spread: Spread | None = None
        self.masks = False
        self.maskless: str | None = None

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout | None = None,
        mask: Tensor | None = None,
        kv_layout: Layout | None = None,
        known: Sequence[Tensor] = (),
    ) -> Tensor:
        """Attend within each row, never across rows.

        Without a layout the tensors are an ordinary batch, q [B, S, N, H] and k, v [B, K, N, H]. With one
        they are packed by it; `kv_layout` is the layout of k and v where it differs (cross attention). True
        in a boolean mask means "attend"; a mask needs rows of equal length, otherwise ValueError, and a backend that
        takes one, otherwise UnsupportedError. What ranks share may see, besides, what all of them have (`Spread`).
        """
        if mask is not None and self.maskless is not None:
            raise UnsupportedError(
                f"attention backend {self.backend.name!r} cannot attend at role {self.role!r}, which is given a mask: "
                f"{self.maskless}; start with --attention.per_role.{self.role}.backend sdpa"
            )
        kv_layout = kv_layout or layout
        if kv_layout is not None and kv_layout.part is not None:
            return self._attend_across(q, k, v, kv_layout, mask, known)
        if layout is None or kv_layout is None or (layout.dense and kv_layout.dense):
            return self.backend(q, k, v, mask)
        if mask is not None:
            raise ValueError(f"rows of {layout.lengths} tokens cannot take a mask; give rows of equal length")
        return self.backend.packed(q, k, v, layout, kv_layout)

    def _attend_across(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, mask: Tensor | None, known: Sequence[Tensor]
    ) -> Tensor:
        if mask is not None:
            raise ValueError("tokens that are spread over ranks come in their order and cannot take a mask")
        if self.spread is None:
            raise ValueError("the tokens are spread over ranks, and this attention was not bound to attend across them")
        return self.spread(self.backend, q, k, v, layout, known)

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}x{self.head_dim}, role={self.role}, backend={self.backend.name}"
