"""`sglang.multimodal_gen.runtime.layers.attention`: attention sites, which are ours inside.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention, SiteOptions
from omnimuse.core.errors import ModelError


class LocalAttention(nn.Module):
    """One attention site, which attends to what it is given, also where ranks share tokens.

    Its backend is chosen where the engine starts, by its `role`: `prefix`, or "self". `supported_attention_backends`
    are theirs and choose nothing here.
    """

    local = True

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        num_kv_heads: int | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        supported_attention_backends: Any = None,
        prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        role = prefix or "self"
        site = SiteOptions(role=role, prefix=prefix, skip_sequence_parallel=self.local)
        self.attn = Attention(num_heads, head_size, causal, softmax_scale, num_kv_heads, **site)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, S, N, H], [B, K, N, H] twice -> [B, S, N, H]; a mask is true where to attend."""
        found: Tensor = self.attn(q, k, v, None if attn_mask is None else AttentionMetadata(attn_mask=attn_mask))
        return found


class USPAttention(LocalAttention):
    """A site whose tokens ranks may share. Of each row the first `num_replicated_prefix` tokens, or the last
    `num_replicated_suffix`, are the same on all of them.
    """

    local = False

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        num_replicated_prefix: int = 0,
        num_replicated_suffix: int = 0,
        skip_sequence_parallel_override: bool = False,
    ) -> Tensor:
        """The same."""
        if num_replicated_prefix and num_replicated_suffix:
            raise ModelError("tokens that all ranks have are first or last in a row, not both; give one of the numbers")
        alike = num_replicated_prefix or num_replicated_suffix
        if self.attn.spread and skip_sequence_parallel_override:
            raise ModelError(
                "skip_sequence_parallel_override is not taken where ranks share tokens: use LocalAttention"
            )
        if not self.attn.spread or not alike:
            return super().forward(q, k, v, attn_mask)
        front, rest = bool(num_replicated_prefix), q.shape[1] - alike
        sizes = [alike, rest] if front else [rest, alike]
        parts = [x.split(sizes, dim=1) for x in (q, k, v)]
        own, others = ([part[at] for part in parts] for at in ((1, 0) if front else (0, 1)))
        meta = AttentionMetadata(attn_mask, joint_strategy="front" if front else "rear")
        meta.joint_query, meta.joint_key, meta.joint_value = others
        found: Tensor = self.attn(*own, meta)
        return found


class UlyssesAttention(LocalAttention):
    """A site whose tokens ranks may share, with others that all of them have, which follow in every row."""

    local = False

    def forward(  # type: ignore[override]
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        replicated_q: Tensor | None = None,
        replicated_k: Tensor | None = None,
        replicated_v: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The outcome of the tokens, and of those that all ranks have."""
        meta = AttentionMetadata(attn_mask, None, replicated_q, replicated_k, replicated_v, "rear")
        found: Tensor = self.attn(q, k, v, meta)
        if replicated_q is None:
            return found, None
        own, alike = found.split([q.shape[1], replicated_q.shape[1]], dim=1)
        return own, alike


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
