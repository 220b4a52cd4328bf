"""`vllm_omni.diffusion.attention.layer`: an attention site of the contract, which is one of ours inside.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim.
"""

from __future__ import annotations

import math
from typing import Any, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor, nn

from omnimuse.attention import layer as ours
from omnimuse.compat.contract.names import no_name
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.contract.tokens import attend
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.core.errors import ModelError

_T = TypeVar("_T", Tensor, Tensor | None)


class SiteOptions(TypedDict, total=False):
    """What a site may say of itself."""

    prefix: str
    role: str
    role_category: str | None
    skip_sequence_parallel: bool
    qkv_layout: str | None
    scatter_idx: int
    gather_idx: int
    use_sync: bool
    disable_kv_quant: bool


WHICH_KEYS = frozenset({"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "valid_kv_length"})
"""Hints for kernels that say which keys count, so that leaving them out would change the outcome."""


class Attention(nn.Module):
    """One attention site: `role` and `role_category` are the names by which a configuration gives it a backend.

    `softmax_scale` (None: one over the root of the head's size) is put into the queries where it is another one than
    our backends have. Where keys are shared, they are repeated. `skip_sequence_parallel` says that the keys are the
    same on all ranks; `prefix` names the site for people. `qkv_layout` and `use_sync` are hints, and keys are never
    packed into fewer bits (`disable_kv_quant`); ranks always exchange heads for tokens (`scatter_idx`, `gather_idx`).
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        causal: bool = False,
        softmax_scale: float | None = None,
        num_kv_heads: int | None = None,
        **site: Unpack[SiteOptions],
    ) -> None:
        super().__init__()
        keys = num_kv_heads or num_heads
        if num_heads % keys:
            raise ValueError(f"num_heads={num_heads} is no multiple of num_kv_heads={keys}: heads cannot share keys so")
        if (ways := (site.get("scatter_idx", 2), site.get("gather_idx", 1))) != (2, 1):
            raise ValueError(f"scatter_idx and gather_idx = {ways} are not taken; leave them at (2, 1)")
        role, category = site.get("role", "self"), site.get("role_category")
        self.site = ours.Attention(num_heads, head_size, role, category, key_heads=keys)
        self.shared = num_heads // keys
        self.causal = self.site.masks = causal
        self.factor = 1.0 if softmax_scale is None else softmax_scale * math.sqrt(head_size)
        self.skip_sequence_parallel = site.get("skip_sequence_parallel", False)
        self.prefix = site.get("prefix", "")

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_metadata: AttentionMetadata | None = None
    ) -> Tensor:
        """[B, S, N, H], [B, K, N, H] twice (there perhaps fewer heads) -> [B, S, N, H]."""
        meta = attn_metadata or AttentionMetadata()
        if wrong := sorted(WHICH_KEYS & meta.extra.keys()):
            raise ModelError(f"attn_metadata.extra has {wrong}, which is not taken; give a mask")
        own = self._alike(query, key, value)
        others = self._alike(meta.joint_query, meta.joint_key, meta.joint_value)
        if self.spread:
            if self.causal or meta.attn_mask is not None:
                raise ModelError(
                    f"attention {self.prefix or self.site.role} has a mask, which ranks that share tokens cannot keep; "
                    "leave ulysses_degree and ring_degree out"
                )
            return attend(self.site, own, others, meta.joint_strategy == "front")
        query, key, value = (_joined(part, other, meta.joint_strategy) for part, other in zip(own, others, strict=True))
        found: Tensor = self.site(query, key, value, mask=self._mask(meta, query, key))
        return found

    @property
    def spread(self) -> bool:
        """Whether what it is given is this rank's share of the tokens."""
        return inside() and here("attention").spread and not self.skip_sequence_parallel

    def _alike(self, query: _T, key: _T, value: _T) -> tuple[_T, _T, _T]:
        """With keys for every head, and queries that our backends scale as this site is to."""
        if query is not None and not math.isclose(self.factor, 1.0):
            query = query * self.factor
        shared = self.shared
        if key is not None and value is not None and shared > 1:
            key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
        return query, key, value

    def _mask(self, meta: AttentionMetadata, query: Tensor, key: Tensor) -> Tensor | None:
        """True where to attend, or what is added to the scores; broadcasts to [B, N, S, K]."""
        mask = meta.attn_mask
        if mask is not None and meta.joint_attn_mask is not None:
            mask = _joined(mask, meta.joint_attn_mask, meta.joint_strategy)
        if mask is not None and mask.ndim == 2:
            mask = (mask != 0)[:, None, None, :]
        if mask is not None and mask.ndim == 3:  # of each row, or else of each head
            mask = mask[:, None] if len(mask) == len(query) else mask[None]
        if not self.causal:
            return mask
        if query.shape[1] != key.shape[1]:
            raise ValueError(f"{query.shape[1]} queries and {key.shape[1]} keys cannot be causal: give as many of both")
        past = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).tril()
        if mask is None:
            return past
        return mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -math.inf)


def _joined(part: Tensor, other: Tensor | None, strategy: str) -> Tensor:
    if other is None:
        return part
    return torch.cat([other, part] if strategy == "front" else [part, other], dim=1)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
