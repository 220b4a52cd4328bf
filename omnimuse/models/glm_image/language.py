"""GLM-Image's language model: it reads a prompt and pictures, and writes what is in a picture, one token for a patch.

The arithmetic is that of transformers' `GlmImageForConditionalGeneration`. Pictures are tokens among others: a vision
tower and a codebook make them (`vision.py`). Rows are laid end to end for every layer but attention, in which each row
sees its own memory. A token has a place on three axes, of which each turns some pairs of a head; the rest of a head
does not turn.

Letters: R rows, S tokens of a row, T of all rows, D width, N heads, H head dim, P pairs that turn, L layers, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Decoder, Reading, Sizes
from omnimuse.ar.remembering import Conditions
from omnimuse.attention.layout import Layout
from omnimuse.core.errors import ModelError
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.stack import Block, BlockStack, Memory
from omnimuse.loader.facts import read_facts
from omnimuse.models.glm_image.vision import GlmImageCodebook, GlmImageVision

WHERE = "vision_language_encoder/config.json"
AXES = 3
IGNORED = frozenset(
    {
        *("attention_dropout", "dtype", "torch_dtype", "initializer_range", "max_position_embeddings", "use_cache"),
        *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "transformers_version"),
        *("rope_parameters", "rope_scaling", "rope_theta", "architectures"),
    }
)


@dataclass(frozen=True)
class LanguageConfig:
    """The facts in the part `text_config` of the checkpoint's config.json; defaults are those of the published 9B."""

    vocab_size: int = 168064
    vision_vocab_size: int = 16512
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 0
    attention_bias: bool = True
    rms_norm_eps: float = 1e-5
    theta: float = 10_000.0
    sections: tuple[int, ...] = (8, 12, 12)

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LanguageConfig:
        """Read the part's contents; raises ModelError for a variant that this file does not compute."""
        rope = dict(config.get("rope_parameters") or {})
        fixed = {"model_type": ("glm_image_text",), "hidden_act": ("silu",), "layer_types": (None,)}
        if (kind := rope.get("rope_type", "default")) != "default":
            raise ModelError(f"{WHERE}: rope_type={kind!r} is not supported; only 'default' is")
        told = {"theta": rope.get("rope_theta"), "sections": rope.get("mrope_section")}
        found = read_facts(cls, {**config, **told}, WHERE, fixed, IGNORED)
        turned = int(found.head * rope.get("partial_rotary_factor", 1.0))
        if 2 * sum(found.sections) != turned:
            raise ModelError(
                f"{WHERE}: mrope_section={found.sections} does not share out {turned // 2} pairs of a head"
            )
        return found


@dataclass(frozen=True)
class Placed(Reading):
    """A row whose tokens have places, by which they turn: `turns` [S, 2, P] is what `GlmImageWriter.turns` made."""

    turns: Tensor


class GlmImageWriter(Decoder):
    """Tokens, their places and what came before them -> logits of the next token of a picture."""

    def __init__(self, config: LanguageConfig, vision: GlmImageVision, codebook: GlmImageCodebook) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = BlockStack(GlmImageLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vision_vocab_size, bias=False)
        self.vision = vision
        self.codebook = codebook

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GlmImageWriter:
        """The language model that a checkpoint's config.json describes."""
        parts = {name: config.get(name) or {} for name in ("text_config", "vision_config", "vq_config")}
        vision, codebook = GlmImageVision.of(parts["vision_config"]), GlmImageCodebook.of(parts["vq_config"])
        return cls(LanguageConfig.from_dict(parts["text_config"]), vision, codebook)

    def stacks(self) -> dict[str, BlockStack]:
        return {"layers": self.layers}

    @property
    def sizes(self) -> Sizes:
        c = self.config
        return Sizes(c.num_hidden_layers, c.num_key_value_heads, c.head, self.norm.weight.dtype)

    def see(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """The tokens of a picture, int64 [rows * columns], from its patches, row by row, [rows * columns, *]."""
        return self.codebook(self.vision(patches, rows, columns))

    def turns(self, places: Tensor) -> Tensor:
        """Cosines and sines of the angles by which tokens at these places, int64 [3, S], turn: [S, 2, P].

        Made for a whole request at once, so that they do not depend on company.
        """
        count = sum(self.config.sections)
        pairs = torch.arange(count, device=places.device).float()
        parts = (1.0 / self.config.theta ** (pairs / count)).split(self.config.sections)
        axes = places.float()
        angles = torch.cat([torch.outer(axes[i % AXES], part) for i, part in enumerate(parts)], dim=1)  # [S, P]
        return torch.stack([angles.cos(), angles.sin()], dim=1).to(self.norm.weight.dtype)

    def forward(self, rows: Sequence[Placed], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        layout = Layout(tuple(len(row.ids) for row in rows))
        hidden = self.embed_tokens(layout.pack([row.ids for row in rows]))  # [1, T, D] or [R, S, D]
        cos, sin = layout.pack([row.turns for row in rows]).unsqueeze(3).unbind(2)  # [B, S, 1, P] each
        hidden = self.layers(hidden, Conditions.of(rows, layout, cos, sin), memories)
        last = torch.stack([row[-1] for row in layout.unpack(hidden)])  # [R, D]
        return list(self.head(self.norm(last)).unbind())


class GlmImageLayer(Block[Conditions]):
    """Attention, then the gated MLP, each on the normed hidden states, normed once more and added to them."""

    mixes_tokens = True

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        norms = [RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(4)]
        self.input_layernorm, self.post_self_attn_layernorm, self.post_attention_layernorm, self.post_mlp_layernorm = (
            norms
        )
        self.self_attn = GlmImageAttention(config, layer)
        self.mlp = GlmImageMLP(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden = hidden + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(hidden), cond))
        return hidden + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(hidden)))


class GlmImageMLP(nn.Module):
    """down(up(x) * silu(gate(x))), gate and up in one layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(up * self.activation(gate))


class GlmImageAttention(nn.Module):
    """Causal attention to what the memory of a row has, and to the tokens that are read now, which it then has, too."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, (-1, config.head)
        own, shared = config.num_attention_heads * config.head, config.num_key_value_heads * config.head
        self.q_proj = nn.Linear(config.hidden_size, own, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=config.attention_bias)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cond: Conditions) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(cond.attend(self.layer, _turned(q, cond), _turned(k, cond), v))


def _turned(x: Tensor, cond: Conditions) -> Tensor:
    """Turns each pair (x[i], x[i + P]) of the first 2 P numbers of every head by its angle: x [B, S, N, H]."""
    pairs = cond.cos.shape[-1]
    left, right, rest = x.split([pairs, pairs, x.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([left * cond.cos - right * cond.sin, right * cond.cos + left * cond.sin, rest], dim=-1)
