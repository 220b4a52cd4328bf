"""Attention of decoders: each row sees its own memory, and what is read now, which it then has, too.

Letters: R rows, S tokens of a row, T of all rows, N heads, H head dim, P pairs of a head that turn, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut


@dataclass(frozen=True)
class Conditions:
    """What every layer receives beside the hidden states: rotations, packed like these, and the rows' memories.

    A row that reads several tokens after others has a mask; one token, or the first ones, need none.
    """

    layout: Layout
    cos: Tensor  # [1, T, 1, P] or [R, S, 1, P], of the angle by which a place turns
    sin: Tensor
    rows: tuple[Reading, ...]
    masks: tuple[Tensor | None, ...]  # [S, start + S], True where a token sees another

    @staticmethod
    def of(rows: Sequence[Reading], layout: Layout, cos: Tensor, sin: Tensor) -> Conditions:
        """Those of `rows`, which `layout` packs."""
        return Conditions(layout, cos, sin, tuple(rows), tuple(map(_mask, rows)))

    @property
    def dense(self) -> bool:
        return False

    def select(self, rows: Sequence[int]) -> Conditions:
        return Conditions(
            self.layout.select(rows),
            self.layout.take(self.cos, rows),
            self.layout.take(self.sin, rows),
            tuple(self.rows[row] for row in rows),
            tuple(self.masks[row] for row in rows),
        )

    def cut(self, part: Cut) -> Conditions | None:
        return None  # what a row remembers lies in one place

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries [B, S, N, H], keys and values of as many heads or fewer, packed -> what is seen, [B, S, N H]."""
        parts = (self.layout.unpack(part) for part in (q, k, v))
        seen = [
            _attend(row, layer, q, k, v, mask) for row, q, k, v, mask in zip(self.rows, *parts, self.masks, strict=True)
        ]
        return self.layout.pack(seen)


def _attend(row: Reading, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Queries, keys and values [S, *, H] of one row -> what it sees, [S, N H]."""
    end = row.start + len(q)
    remembered = row.kv.data[layer]  # [2, heads of keys, room, H]
    remembered[0, :, row.start : end] = k.transpose(0, 1)
    remembered[1, :, row.start : end] = v.transpose(0, 1)
    keys, values = remembered[:, None, :, :end]  # [1, heads of keys, end, H]
    seen = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],  # [1, N, S, H]
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and len(q) > 1,
        enable_gqa=q.shape[1] > k.shape[1],
    )
    return seen[0].transpose(0, 1).flatten(1)


def _mask(row: Reading) -> Tensor | None:
    if row.start == 0 or len(row.ids) == 1:
        return None
    places = torch.arange(row.start + len(row.ids), device=row.ids.device)
    return places[None, :] <= places[row.start :, None]
