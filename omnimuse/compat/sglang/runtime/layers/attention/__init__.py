"""`sglang.multimodal_gen.runtime.layers.attention`: attention sites, which are ours inside.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention


class LocalAttention(nn.Module):
    """One attention site. Its backend is chosen where the engine starts, by its `role`: `prefix`, or "self".

    `supported_attention_backends` are theirs and choose nothing here.
    """

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
        self.attn = Attention(
            num_heads, head_size, causal, softmax_scale, num_kv_heads, role=prefix or "self", prefix=prefix
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, S, N, H], [B, K, N, H] twice -> [B, S, N, H]; a mask is true where to attend."""
        found: Tensor = self.attn(q, k, v, None if attn_mask is None else AttentionMetadata(attn_mask=attn_mask))
        return found


class USPAttention(LocalAttention):
    """The same: ranks that share tokens are refused."""


class UlyssesAttention(LocalAttention):
    """The same."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
