"""The Qwen3 language model as a text encoder (arXiv 2505.09388): hidden states of a prompt, no next token.

The arithmetic is that of transformers' `Qwen3Model`, called as text encoders of transformers are. Built by the worker
from a checkpoint's config.json; variants that are not computed here are refused.

Letters: B batch, S tokens, D width, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.qwen3_facts import WHERE, Qwen3Config
from omnimuse.core.errors import ModelError
from omnimuse.layers.mlp import GatedMLP
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table, turn_halves
from omnimuse.loader.rules import Drop, Rename

RULES: tuple[Rename | Drop, ...] = (
    Drop(r"^lm_head\."),  # what makes the next token
    Rename(r"^model\.", ""),  # how Qwen3ForCausalLM calls what Qwen3Model is
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)
"""How tensors in a published checkpoint are called here."""


def only(first: int) -> tuple[Drop, Drop]:
    """Rules, beside those for all tensors, for an encoder that has its `first` layers alone."""
    kept = "|".join(map(str, range(first)))
    return Drop(rf"^layers\.(?!(?:{kept})\.)"), Drop(r"^norm\.")


@dataclass(frozen=True)
class Conditions:
    """What every layer receives beside the hidden states. No `mask`: every token sees itself and those before it."""

    cos: Tensor  # [S, 1, H/2], of the angle by which a position turns
    sin: Tensor
    mask: Tensor | None  # [B, 1, S, S], True where a token sees another


class Qwen3Encoder(nn.Module):
    """Text features of every token. Of one that is read before its end, only the `first` layers are there."""

    def __init__(self, config: Qwen3Config, first: int | None = None) -> None:
        super().__init__()
        if first is not None and first > config.num_hidden_layers:
            raise ModelError(
                f"{WHERE}: num_hidden_layers={config.num_hidden_layers}; what layer {first} makes is read: use the "
                "text encoder that was published with this model"
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Qwen3Layer(config) for _ in range(first or config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if first is None else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Qwen3Encoder:
        """The encoder that a checkpoint's config.json describes; ModelError for a variant it cannot be."""
        return cls(Qwen3Config.from_dict(config))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, output_hidden_states: Literal[True] = True
    ) -> Encoded:
        """Token ids [B, S] and which of them are no pads [B, S] -> hidden states, computed when they are taken."""
        tokens = input_ids.shape[1]
        positions = torch.arange(tokens, device=input_ids.device)
        mask = None
        if attention_mask is not None and not attention_mask.all():
            causal = positions[None, :] <= positions[:, None]  # [S, S]
            mask = causal & attention_mask[:, None, None, :].bool()  # [B, 1, S, S]
        embedded = self.embed_tokens(input_ids)  # [B, S, D]
        table = rotary_table(positions[:, None], (self.config.head_dim,), self.config.rope_theta).to(embedded.dtype)
        cos, sin = table[:, :1, :, 0], table[:, 1:, :, 1]  # [S, 1, H/2]
        return Encoded(HiddenStates(self, embedded, Conditions(cos, sin, mask)))


class HiddenStates:
    """`states[i]` is what the first `i` layers make of the tokens, [B, S, D], the last one after the final norm.

    Layers run when a state is taken, and only those it needs; a later state goes on from the one taken before it.
    """

    def __init__(self, encoder: Qwen3Encoder, embedded: Tensor, cond: Conditions) -> None:
        self._encoder, self._embedded, self._cond = encoder, embedded, cond
        self._reached = (0, embedded)

    def __len__(self) -> int:
        return len(self._encoder.layers) + 1

    def __getitem__(self, index: int) -> Tensor:
        count = range(len(self))[index]
        done, hidden = self._reached if self._reached[0] <= count else (0, self._embedded)
        for layer in self._encoder.layers[done:count]:
            hidden = layer(hidden, self._cond)
        self._reached = (count, hidden)
        norm = self._encoder.norm
        return hidden if norm is None or count < len(self) - 1 else norm(hidden)


@dataclass(frozen=True)
class Encoded:
    """What the encoder returns, under the name that transformers' encoders give it."""

    hidden_states: HiddenStates


class Qwen3Layer(nn.Module):
    """Attention, then the gated MLP, each on the normed hidden states and added to them."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Qwen3Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cond)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Qwen3Heads(nn.Module):
    """What attention is computed from; several query heads share one head of keys and values."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.heads = (-1, config.head_dim)
        self.sharing = config.num_attention_heads // config.num_key_value_heads
        shared = config.num_key_value_heads * config.head_dim
        own = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, own, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)
        normed = config.norms_heads
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if normed else nn.Identity()

    def split(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, S, N, H], keys and values [B, S, N / sharing, H] of hidden states [B, S, D]."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, self.heads))
        k = self.k_norm(self.k_proj(x).unflatten(-1, self.heads))
        v = self.v_proj(x).unflatten(-1, self.heads)
        return turn_halves(q, cos, sin), turn_halves(k, cos, sin), v  # rounded where the reference rounds


class Qwen3Attention(Qwen3Heads):
    """Causal attention among the tokens that are given."""

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        q, k, v = self.split(x, cond.cos, cond.sin)
        k, v = (part.repeat_interleave(self.sharing, dim=2) for part in (k, v))  # [B, S, N, H]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=cond.mask, is_causal=cond.mask is None)
        return self.o_proj(seen.transpose(1, 2).flatten(2))
