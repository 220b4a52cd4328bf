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
