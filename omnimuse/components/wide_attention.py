"""Attention of tokens to others, whose queries and keys are normed over all heads together.

Networks of videos read their prompts by it, and let video and sound read each other. Letters: B batch, S tokens, N
heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Columns, Cutting, Rows, Widths
from omnimuse.layers.rotary import rotate

PLAN: Mapping[str, Cutting] = {
    "to_q": Columns(queries=1),
    "norm_q": Widths(queries=1),
    "to_kv": Columns(keys=2),
    "norm_k": Widths(keys=1),
    "to_out": Rows(queries=1),
}
"""How ranks share out the weights of a `WideAttention`."""


class WideAttention(nn.Module):
    """Tokens `dim` wide attend to those that are `other` wide, by heads that are `inner` wide together."""

    def __init__(self, dim: int, other: int, inner: int, heads: int, role: str, eps: float) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, inner)
        self.to_kv = nn.Linear(other, 2 * inner)
        self.norm_q = nn.RMSNorm(inner, eps)
        self.norm_k = nn.RMSNorm(inner, eps)
        self.core = Attention(heads, inner // heads, role, category="self" if role == "self" else "cross")
        self.to_out = nn.Linear(inner, dim)

    def enter(self, x: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `x`, keys and values of the others: [B, *, N, H] each."""
        k, v = self.to_kv(others).chunk(2, dim=-1)
        return self.by_head(self.norm_q(self.to_q(x))), self.by_head(self.norm_k(k)), self.by_head(v)

    def by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.core.num_heads, -1))

    def forward(self, x: Tensor, layout: Layout, others: Tensor, other_layout: Layout) -> Tensor:
        q, k, v = self.enter(x, others)
        return self.to_out(self.core(q, k, v, layout, kv_layout=other_layout).flatten(-2))  # [B, S, dim]


class TurningAttention(WideAttention):
    """The same, of tokens that turn by where they stand: every head by angles of its own. Numbers of a head that turn
    together are neighbours or, `split`, half a head apart.
    """

    def __init__(self, dim: int, other: int, inner: int, heads: int, role: str, eps: float, split: bool) -> None:
        super().__init__(dim, other, inner, heads, role, eps)
        self.split = split

    def turning(
        self, x: Tensor, layout: Layout, others: Tensor, other_layout: Layout, ropes: tuple[Tensor, Tensor]
    ) -> Tensor:
        q, k, v = self.enter(x, others)
        q, k = self._turn(q, ropes[0]), self._turn(k, ropes[1])
        return self.to_out(self.core(q, k, v, layout, kv_layout=other_layout).flatten(-2))  # [B, S, dim]

    def _turn(self, x: Tensor, rope: Tensor) -> Tensor:
        """[B, S, N, H]. Numbers half a head apart are made neighbours first, in
        queries and keys alike, which changes no product.
        """
        x = x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if self.split else x
        half = self.core.head_dim // 2
        first, last = self.core.first_head * half, (self.core.first_head + self.core.num_heads) * half
        turned = rotate(x.flatten(-2)[:, :, None, None], rope[..., first:last, :])[:, :, 0, 0]
        return turned.unflatten(-1, (self.core.num_heads, -1))
