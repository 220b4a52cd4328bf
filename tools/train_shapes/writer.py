"""The chat model's network while it is trained: the arithmetic and the names of transformers' Qwen3ForCausalLM.

In plain torch, so that a run on a busy machine spends nothing on the library. Letters: B texts, S tokens, D width,
N heads, K heads of keys, H head dim.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 10000.0
EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes by the names of transformers' Qwen3Config."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 1024

    @property
    def config(self) -> dict[str, object]:
        """The checkpoint's config.json; what is said next is read off the table of words."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
            "rms_norm_eps": EPS,
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }


class Writer(nn.Module):
    """Tokens [B, S] -> hidden states [B, S, D], each of which has seen all tokens up to its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.04)

    def forward(self, ids: Tensor) -> Tensor:
        pairs = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]).float(), THETA**-pairs).repeat(1, 2)  # [S, H]
        hidden = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            hidden = layer(hidden, angles.cos(), angles.sin())
        return self.model.norm(hidden)

    def words(self, hidden: Tensor) -> Tensor:
        """What comes next, logits [*, V], of hidden states [*, D]."""
        return hidden @ self.model.embed_tokens.weight.T


class _Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, EPS)


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, EPS)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, EPS)
        self.mlp = _MLP(shape.hidden_size, shape.intermediate_size)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dim, own, shared = shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads
        self.q_proj = nn.Linear(shape.hidden_size, own * self.dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shared * self.dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shared * self.dim, bias=False)
        self.o_proj = nn.Linear(own * self.dim, shape.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.dim, EPS)
        self.k_norm = nn.RMSNorm(self.dim, EPS)
        self.each = own // shared

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # [B, N, S, H], [B, K, S, H] twice
        q, k = _turned(self.q_norm(q), cos, sin), _turned(self.k_norm(k), cos, sin)
        k, v = k.repeat_interleave(self.each, 1), v.repeat_interleave(self.each, 1)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT * self.dim**-0.5).masked_fill(later, -torch.inf)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
