"""BAGEL's language model, which draws, too: a mixture of transformers with one attention.

The arithmetic is that of the published code (`qwen2_navit.py`, `bagel.py`). Every layer has weights for tokens that are
read or written, words and what is seen of pictures, and weights for those of latents, which are drawn; all attend
together. The tokens of a picture stand in one place, and see one another all.

Letters: R rows, S tokens of a row, T of all rows, D width, N heads, H head dim; c h w latents, p side of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import UNKNOWN, Reading
from omnimuse.ar.remembering import Conditions, turned
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.decoder import DenseDecoder, JoinedMLP
from omnimuse.components.patches import patchify, unpatchify
from omnimuse.components.qwen3_facts import IRRELEVANT, Qwen3Config, rope_theta
from omnimuse.components.seeing import here
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.stack import Block, Memory
from omnimuse.loader.facts import read_facts
from omnimuse.models.bagel.spec import PATCH

WHERE = "llm_config.json"
IGNORED = IRRELEVANT | {"model_type", "architectures", "rope_scaling", "use_sliding_window", "layer_module", "qk_norm"}


@dataclass(frozen=True)
class BagelConfig(Qwen3Config):
    """The facts in the checkpoint's llm_config.json, and what the autoencoder's latents are to it."""

    side: int = 64
    channels: int = 16

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = WHERE) -> BagelConfig:
        """Read the contents of all files; raises ModelError for a variant that this file does not compute."""
        told, drawn = config["llm_config"], config.get("vae_config") or {}
        more = {"side": config.get("max_latent_size"), "channels": drawn.get("z_channels")}
        more |= {"head_dim": told["hidden_size"] // told["num_attention_heads"], "rope_theta": rope_theta(told, where)}
        return read_facts(cls, {**told, **more}, where, {"hidden_act": ("silu",)}, IGNORED)


@dataclass(frozen=True)
class Placed(Reading):
    """A row whose first token is in the place `at`. A picture's is the tokens `ids`, its marks, and either what is
    `seen` of it, [S, D], or its `latents` [c, h, w] at a `time` [] from 1, noise, to 0. One that is `fixed` is read;
    the others are drawn, and predict how the latents move.
    """

    at: int = 0
    seen: Tensor | None = None
    latents: Tensor | None = None
    time: Tensor | None = None
    fixed: bool = True

    def behind(self) -> Placed:
        return Placed(UNKNOWN, self.start + 1, self.kv, self.at + 1, forbidden=self.forbidden[1:])

    @property
    def place(self) -> int:
        return self.at

    @property
    def causal(self) -> bool:
        return self.seen is None and self.latents is None

    @property
    def keep(self) -> bool:
        return self.fixed

    @property
    def read(self) -> int:
        """How many tokens are read or written."""
        return self.count + (0 if self.seen is None else len(self.seen))

    @property
    def drawn(self) -> int:
        """How many are patches of latents."""
        return 0 if self.latents is None else self.latents.shape[1] * self.latents.shape[2] // PATCH**2


@dataclass(frozen=True)
class Mixed(Conditions):
    """What layers receive; of every row, tokens that are read come first, then those that are drawn."""

    @cached_property
    def kinds(self) -> list[tuple[int, int]]:
        """How many tokens of every row are of each kind, here."""
        return [(runs[0], sum(runs[1:])) for runs in self.layout.runs]

    @cached_property
    def draws(self) -> bool:
        """Whether any row has tokens that are drawn."""
        return any(drawn for _, drawn in self.kinds)

    @cached_property
    def turns_apart(self) -> list[tuple[Tensor, ...]]:
        """Those of each kind."""
        return list(zip(*map(self.apart, self.turns), strict=True))

    def apart(self, x: Tensor) -> tuple[Tensor, ...]:
        """Packed tokens [1, T, *] -> those that are read and those that are drawn, [1, *, *] each; where none are
        drawn, all as they are.
        """
        if not self.draws:
            return (x,)
        parts = x.flatten(0, 1).split([count for pair in self.kinds for count in pair])
        return torch.cat(parts[::2])[None], torch.cat(parts[1::2])[None]

    def joined(self, *parts: Tensor) -> Tensor:
        """The reverse of `apart`."""
        if not self.draws:
            return parts[0]
        counts = zip(*self.kinds, strict=True)
        rows = zip(*(x[0].split(kind) for x, kind in zip(parts, counts, strict=True)), strict=True)
        whole = torch.cat([part for row in rows for part in row])
        return whole.view(-1, self.layout.length or len(whole), *whole.shape[1:])


class Bagel(DenseDecoder):
    """Rows that are `Placed` -> logits of the next token [V], or of one that is drawn the velocity [c, h, w]."""

    draws = True

    def __init__(self, config: BagelConfig) -> None:
        super().__init__(config, partial(MixedLayer, config))  # type: ignore[arg-type]
        dim, numbers = config.hidden_size, config.channels * PATCH**2
        self.drawn_norm = RMSNorm(dim, config.rms_norm_eps)
        self.embed_tokens = nn.Embedding(config.vocab_size, dim)
        self.head = nn.Linear(dim, config.vocab_size, bias=False)
        self.enter_drawn = nn.Linear(numbers, dim)
        self.say_drawn = nn.Linear(dim, numbers)
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.places = nn.Parameter(torch.empty(config.side**2, dim))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Bagel:
        return cls(BagelConfig.from_dict(config))

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.embed_tokens(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)

    def forward(self, rows: Sequence[Placed], memories: Sequence[Memory] | None = None) -> list[Tensor]:  # type: ignore[override]
        if all(row.read + row.drawn == 1 for row in rows):
            return super().forward(rows, memories)
        kinds = tuple((row.read, row.drawn) for row in rows)
        layout = Layout(tuple(map(sum, kinds)), kinds)
        cond = self.conditions(rows, layout)
        hidden = self.layers(layout.pack([self._entered(row) for row in rows]), cond, memories)
        return [self._said(row, found) for row, found in zip(rows, layout.unpack(hidden), strict=True)]

    def conditions(self, rows: Sequence[Reading], layout: Layout) -> Mixed:
        if layout.length == 1:
            found = super().conditions(rows, layout)
            return Mixed(layout, found.cos, found.sin, found.rows)
        turns = self.turned(max(row.place + row.count for row in rows), rows[0].kv.device)
        spans = [
            turns[:, row.place : row.place + count]
            if row.causal
            else turns[:, row.place, None].expand(-1, count, -1, -1)
            for row, count in zip(rows, layout.lengths, strict=True)
        ]
        cos, sin = (layout.pack([span[part] for span in spans]) for part in range(2))
        return Mixed.of(rows, layout, cos, sin)

    def _entered(self, row: Placed) -> Tensor:
        """What stands for the tokens of a row, [S, D]."""
        parts = [self.embed_tokens(row.given)]
        if row.seen is not None:
            parts.append(row.seen.to(parts[0].dtype))
        if row.latents is not None:
            assert row.time is not None
            rows, columns = (length // PATCH for length in row.latents.shape[1:])
            cells = self.enter_drawn(patchify(row.latents, PATCH, last=True).to(parts[0].dtype))
            parts.append(cells + self.time_embedder(row.time.view(1)) + here(self.places, rows, columns))
        return torch.cat(parts)

    def _said(self, row: Placed, hidden: Tensor) -> Tensor:
        """The prediction of a row from its hidden states [S, D]; of a picture that is read there is none."""
        if row.causal:
            return self.head(self.norm(hidden[-1]))
        if row.keep or row.latents is None:
            return hidden[:0]
        return unpatchify(self.say_drawn(self.drawn_norm(hidden[row.read :])), row.latents.shape, PATCH, last=True)


class Weights(nn.Module):
    """Those of one kind of tokens in a layer."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        dim, head, heads = config.hidden_size, config.head_dim, config.num_attention_heads
        self.input_layernorm = RMSNorm(dim, config.rms_norm_eps)
        self.qkv = nn.Linear(dim, (heads + 2 * config.num_key_value_heads) * head)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)
        self.o_proj = nn.Linear(heads * head, dim, bias=False)
        self.post_attention_layernorm = RMSNorm(dim, config.rms_norm_eps)
        self.mlp = JoinedMLP(dim, config.intermediate_size)

    def made(self, site: Attention, x: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values for `site`, [B, S, heads, H] each; the first two turned."""
        heads = self.qkv(self.input_layernorm(x)).unflatten(-1, (-1, site.head_dim))
        q, k, v = heads.split([site.num_heads, site.key_heads, site.key_heads], dim=-2)
        return turned(self.q_norm(q), own, other), turned(self.k_norm(k), own, other), v

    def answered(self, x: Tensor, seen: Tensor) -> Tensor:
        """The hidden states after what their attention has `seen`."""
        x = x + self.o_proj(seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class MixedLayer(Block[Mixed]):
    """Attention of all tokens, then an MLP; tokens that are read and those that are drawn have weights of their own."""

    pieces = (Weights.made, Weights.answered)

    def __init__(self, config: BagelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        self.attention = Attention(heads, config.head_dim, key_heads=shared)
        self.read = Weights(config)
        self.drawn = Weights(config)

    def forward(self, hidden: Tensor, cond: Mixed) -> Tensor:
        made, answered = (self.piece(piece) for piece in self.pieces)
        tokens = list(zip((self.read, self.drawn), cond.apart(hidden), strict=False))
        heads = [made(own, self.attention, x, *turns) for (own, x), turns in zip(tokens, cond.turns_apart, strict=True)]
        q, k, v = (cond.joined(*each) for each in zip(*heads, strict=True))
        seen = cond.apart(cond.across(self.attention, self.layer, q, k, v))
        return cond.joined(*(answered(own, x, each) for (own, x), each in zip(tokens, seen, strict=True)))
