"""Torch's FlexAttention: packed rows of different lengths in one call, by a mask of blocks that their layout gives.

On a GPU torch compiles it, once for all lengths, when it first runs. On a CPU it runs as it is written: what torch 2.13
makes of it there is C++ code for one set of lengths each, half a minute every time and slower than one call of `sdpa` a
row (`python -m benchmarks.attention`). Bound by `attention/selection.py`.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim; Q blocks of queries, L blocks of keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omnimuse.attention.layout import Layout

BLOCK = 128
"""Tokens of a block, in both directions: what torch's own tables of blocks have."""
FORMS = 64
"""So many forms of the code there may be in one process: for widths and numbers of heads, with masks and without."""
NARROWEST = 16


class Blocks(NamedTuple):
    """Which keys the queries of packed rows see: the row of every query [S] and of every key [K], and for each block of
    queries how many blocks of keys it sees in part, [1, 1, Q], and which, [1, 1, Q, L], and as a whole likewise.
    """

    queries: Tensor
    keys: Tensor
    partly: Tensor
    those_partly: Tensor
    wholly: Tensor
    those_wholly: Tensor

    @staticmethod
    def of(layout: Layout, kv_layout: Layout, device: torch.device) -> Blocks:
        """For queries packed by `layout` and keys by `kv_layout`; made on `device`, without an upload."""
        (queries, first, last, one), (keys, begun, ended, alike) = (_rows(each, device) for each in (layout, kv_layout))
        seen = (first[:, None] <= ended) & (begun <= last[:, None])  # [Q, L]
        whole = seen & one[:, None] & alike
        return Blocks(queries, keys, *_listed(seen & ~whole), *_listed(whole))


class Flex:
    """`torch.nn.attention.flex_attention`. `load` imports a module."""

    name = "flex"
    weighs = True

    def __init__(self, load: Callable[[str], Any] = import_module) -> None:
        self.load = load

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        if device.type not in ("cpu", "cuda"):
            return f"FlexAttention runs on CUDA and on CPUs, not on {device}"
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"FlexAttention computes in float32, float16 and bfloat16, not in {dtype}"
        if device.type == "cuda" and head_dim < NARROWEST:
            return f"FlexAttention takes heads of at least {NARROWEST} numbers on a GPU, not of {head_dim}"
        return self.missing()

    def missing(self) -> str | None:
        """Why this torch has none that we can use, or None."""
        try:
            self.load("torch.nn.attention.flex_attention").AuxRequest  # noqa: B018
        except (ImportError, AttributeError):
            return f"torch {torch.__version__} has no FlexAttention that tells what keys weigh; 2.13 has"
        limited = "recompile_limit" in inspect.signature(torch.compile).parameters
        return None if limited else f"torch {torch.__version__} compiles too few forms of FlexAttention; 2.13 enough"

    def how(self, device: torch.device) -> str:
        """Whether it is compiled there, and why."""
        if device.type == "cpu":
            return "not compiled, since on a CPU that takes half a minute for every set of lengths and is no faster"
        return "compiled when it first runs, for all lengths"

    def why_not_within(self, device: torch.device) -> str | None:
        """Why blocks that are compiled cannot have it, or None."""
        if device.type != "cpu":
            return None
        return "torch's compiler makes no code for its masks on a CPU that serves more than one length"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._attended(q, k, v, mask)[0]

    def packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
        blocks = layout.kept((self.name, kv_layout.lengths, q.device), lambda: Blocks.of(layout, kv_layout, q.device))
        query, key, value = (x.flatten(0, 1)[None] for x in (q, k, v))  # [1, T, N, H], also of rows that are stacked
        return self._attended(query, key, value, blocks=blocks)[0].view(q.shape)

    def weigh(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, weight = self._attended(q, k, v)
        return out.float(), weight.float()

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, blocks: Blocks | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, S, N, H], and the logarithm of the sum of what the keys weigh, [B, S, N]."""
        attend = self._as_written if q.device.type == "cpu" else self._compiled
        query, key, value = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, S, H]
        if mask is not None:
            mask = mask.expand(*query.shape[:3], key.shape[2])
        out, weight = attend(query, key, value, mask, blocks)
        return out.transpose(1, 2), weight.transpose(1, 2)

    @cached_property
    def _compiled(self) -> Callable[..., tuple[Tensor, Tensor]]:
        return self._made("inductor")

    @cached_property
    def _as_written(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """By torch's operations, with a number for every query and key: the function itself warns of that and does it
        for a few forms only.
        """
        return self._made("eager")

    def _made(self, backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
        torch_s = self.load("torch.nn.attention.flex_attention")

        def attend(
            q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks: Blocks | None
        ) -> tuple[Tensor, Tensor]:
            seen = None
            if blocks is not None:
                rows, keys, *tables = blocks
                seen = torch_s.BlockMask.from_kv_blocks(
                    *tables,
                    BLOCK_SIZE=BLOCK,
                    mask_mod=lambda b, n, s, key: rows[s] == keys[key],
                    seq_lengths=(q.shape[2], k.shape[2]),
                    compute_q_blocks=False,  # only gradients need them
                )
            changed = None if mask is None else _masking(mask)
            told = torch_s.AuxRequest(lse=True)
            out, more = torch_s.flex_attention(q, k, v, changed, seen, return_aux=told)
            return out, more.lse

        made: Callable[..., tuple[Tensor, Tensor]] = torch.compile(  # type: ignore[call-overload]  # it lacks the limit
            attend, backend=backend, dynamic=True, fullgraph=True, recompile_limit=FORMS
        )
        return made


def _masking(mask: Tensor) -> Callable[..., Tensor]:
    """What becomes of a score by a mask [B, N, S, K], which is boolean or added."""
    if mask.dtype == torch.bool:
        return lambda score, b, n, s, key: torch.where(mask[b, n, s, key], score, -torch.inf)
    return lambda score, b, n, s, key: score + mask[b, n, s, key]


def _rows(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The row of every token, int32 [T]; of every block of tokens the rows of its first and of its last one, and
    whether it is full and of one row.
    """
    counts = [torch.full((length,), row, dtype=torch.int32, device=device) for row, length in enumerate(layout.lengths)]
    rows = torch.cat(counts)
    first, last = rows[::BLOCK], rows[BLOCK - 1 :: BLOCK]
    one = torch.zeros_like(first, dtype=torch.bool)
    one[: len(last)] = first[: len(last)] == last
    return rows, first, torch.cat([last, rows[-1:]])[: len(first)], one


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many are chosen of every line, and where, those first: [Q, L] -> [1, 1, Q] and [1, 1, Q, L]."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]
