"""A dense decoder: what it has read, its memory keeps.

Rows are laid end to end for every layer but attention, in which each row sees its own memory; so rows that read a
prompt and rows that go on from one token share a forward.

Letters: R rows, S tokens of a row, T of all rows, D width, N heads, H head dim, L layers, V words.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Decoder, Reading, Sizes, numbers
from omnimuse.ar.remembering import Conditions, likeliest, packed, turned, wanted
from omnimuse.attention.layer import Heads
from omnimuse.attention.layout import Layout
from omnimuse.components.qwen3_facts import Qwen3Config
from omnimuse.core.plans import Columns, Cutting, Grouped, Rows, Span, Total
from omnimuse.layers.kernels import Gated, Plain
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import Block, BlockStack, Memory, Piece

FEWEST = 256
"""Positions whose rotations are made at first."""
CUT: Mapping[str, Cutting] = {
    "qkv": Columns(queries=1, keys=2),
    "o_proj": Rows(queries=1),
    "gate_up": Columns(others=2),
    "down": Rows(others=1),
}
"""How ranks share out the parts of a layer, by what they are called wherever they are in it."""
EXPERTS: Mapping[str, Cutting] = {"gate_up": Columns(others=2), "down": Rows(others=1, summed=False)}
"""The same of an expert, of whom many say something before ranks add up (`Experts`)."""


class PackedDecoder(Decoder):
    """Rows laid end to end: what they are given becomes `logits`, and what is likeliest is read where it is."""

    def forward(self, rows: Sequence[Reading], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        layout = Layout(tuple(row.count for row in rows))
        logits = self._logits(rows, layout, packed(rows, layout), memories)
        if (count := min(len(row.forbidden) for row in rows)) < 2:
            return wanted(rows, logits)
        found = [likeliest(rows, logits)]
        while len(found) < count:  # what comes next is read where it is: nobody waits for it before the last has come
            rows = [row.behind() for row in rows]
            read = found[-1].clamp(min=0)[:, None]  # behind a token that is none nothing counts
            found.append(likeliest(rows, self._logits(rows, layout, read, memories)))
        return list(torch.stack(found, 1).cpu().unbind())

    def _logits(
        self, rows: Sequence[Reading], layout: Layout, given: Tensor, memories: Sequence[Memory] | None
    ) -> Tensor:
        """Logits [R, V] behind what rows are given, packed."""
        if layout.length == 1 and len(rows) < self.fewest:  # nobody looks at what comes of more
            given = torch.cat([given, given[:1].expand(self.fewest - len(rows), *given.shape[1:])])
        return self.logits(rows, layout, given, memories)[: len(rows)]

    @abstractmethod
    def logits(
        self, rows: Sequence[Reading], layout: Layout, given: Tensor, memories: Sequence[Memory] | None
    ) -> Tensor:
        """Logits [R, V] behind what rows are `given`, packed; of rows of one token there may be more than `rows`."""


class DenseDecoder(PackedDecoder):
    """Layers over what stands for tokens: `enter` makes it as wide as they are, `say` makes predictions of the end.

    `make` makes a layer, by its number, where that is not one with a gated MLP.
    """

    def __init__(self, config: Qwen3Config, make: Callable[[int], DecoderLayer] | None = None) -> None:
        super().__init__()
        self.config = config
        make = make or partial(_dense, config)
        self.layers = BlockStack(make(layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._turns: Tensor | None = None
        self._spans, self._at = [(0, config.num_hidden_layers)], 0
        self._site = (next(part for part in self.layers.modules() if isinstance(part, Heads)),)  # no part of its own

    def stacks(self) -> dict[str, BlockStack]:
        return {"layers": self.layers}

    @property
    def sizes(self) -> Sizes:
        start, stop = self._spans[self._at]
        return self._sizes(self._site[0].key_heads, stop - start, start)

    @property
    def most(self) -> Sizes:
        return self._sizes(self._site[0].most_heads, max(stop - start for start, stop in self._spans))

    def keep_layers(self, spans: Sequence[Span], at: int) -> None:
        self._spans, self._at = list(spans), at

    @property
    def whole(self) -> Grouped:
        return self._site[0].whole

    def _sizes(self, heads: int, layers: int, first: int = 0) -> Sizes:
        return Sizes(layers, heads, self.config.head_dim, self.norm.weight.dtype, first)

    def plan(self) -> Mapping[str, Cutting]:
        """What tokens embed, and what says words or codes, every rank has whole: so all choose alike."""
        found = dict[str, Cutting]()
        for path, part in self.layers.named_modules():
            *around, name = ("*" if piece.isdigit() else piece for piece in path.split("."))
            known = EXPERTS if "experts" in around else CUT
            if name in known:
                found[".".join(["layers", *around, name])] = known[name]
            elif name == "total" and isinstance(part, nn.Identity):
                found[".".join(["layers", *around, name])] = Total()
        return found

    def logits(
        self, rows: Sequence[Reading], layout: Layout, given: Tensor, memories: Sequence[Memory] | None
    ) -> Tensor:
        cond = self.conditions(rows, layout)
        hidden = self.layers(self.enter(given, cond), cond, memories)  # [1, T, D] or [R, S, D]
        self.leave(rows, layout, hidden)
        last = hidden if layout.length == 1 else torch.stack([row[-1:] for row in layout.unpack(hidden)])
        return self.say(rows, self.norm(last))[:, 0]

    @abstractmethod
    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        """What stands for tokens, [*, D], of what rows are given, packed as `cond` says."""

    def leave(self, rows: Sequence[Reading], layout: Layout, hidden: Tensor) -> None:
        """What rows want besides of the hidden states behind the layers, [1, T, D] or [R, S, D]: here nothing."""

    @abstractmethod
    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        """Predictions [R, 1, V] of the normed hidden state of the last token of each row, [R, 1, D]; R may be more than
        there are rows.
        """

    def conditions(self, rows: Sequence[Reading], layout: Layout) -> Conditions:
        """What layers receive beside the hidden states: tokens turn by how many others are before them."""
        ends = [row.place + count for row, count in zip(rows, layout.lengths, strict=True)]
        turns = self.turned(max(ends), rows[0].kv.device)
        if layout.length == 1:
            more = [rows[0].place] * (self.fewest - len(rows))
            places = numbers([*(row.place for row in rows), *more], turns.device)
            cos, sin = turns[:, places, None].unbind()  # [R, 1, 1, H/2] each
        else:
            spans = [slice(row.place, end) for row, end in zip(rows, ends, strict=True)]
            cos, sin = (layout.pack([part[span] for span in spans]) for part in turns)
        return Conditions.of(rows, layout, cos, sin)

    def turned(self, tokens: int, device: torch.device) -> Tensor:
        """The cosines and sines of at least the first `tokens` positions, [2, S, 1, H/2]: made once, not every step."""
        known, dtype = self._turns, self.norm.weight.dtype
        if known is None or known.shape[1] < tokens or known.device != device or known.dtype != dtype:
            positions = torch.arange(max(FEWEST, 2 * tokens), device=device)[:, None]
            table = rotary_table(positions, (self.config.head_dim,), self.config.rope_theta).to(dtype)
            known = self._turns = torch.stack([table[:, :1, :, 0], table[:, 1:, :, 1]])
        return known


class DecoderLayer(Block[Conditions]):
    """Attention, then an MLP, each on the normed hidden states and added to them."""

    mixes_tokens = True

    def __init__(self, config: Qwen3Config, layer: int, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = RememberingAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = mlp

    def made(self, hidden: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [B, S, *, H] each, the first two turned."""
        return self.self_attn.made(self.input_layernorm(hidden), own, other)

    def answered(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """The hidden states after what their attention has `seen`, [B, S, N H]."""
        hidden = hidden + self.self_attn.o_proj(seen)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    pieces: ClassVar[tuple[Piece, ...]] = (made, answered)

    def seen(self, hidden: Tensor, cond: Conditions) -> Tensor:
        """What attention sees of the memories of rows, [B, S, N H]."""
        made = self.piece(self.pieces[0])
        return cond.attend(self.self_attn.layer, *made(self, hidden, *cond.turns))

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        return self.piece(self.pieces[1])(self, hidden, self.seen(hidden, cond))


def _dense(config: Qwen3Config, layer: int) -> DecoderLayer:
    return DecoderLayer(config, layer, JoinedMLP(config.hidden_size, config.intermediate_size))


class RememberingAttention(Heads):
    """Causal attention to what the memory of a row has, and to the tokens that are read now, which it then has, too.

    Queries, keys and values are made by one product: few rows take the time of reading the weights, and of the call.
    """

    def __init__(self, config: Qwen3Config, layer: int) -> None:
        own, keys, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        super().__init__(own, dim, keys)
        self.layer = layer
        self.qkv = nn.Linear(config.hidden_size, (own + 2 * keys) * dim, config.biased)
        self.o_proj = nn.Linear(own * dim, config.hidden_size, bias=False)
        self.normed = config.norms_heads
        if self.normed:
            self.q_norm = RMSNorm(dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(dim, config.rms_norm_eps)
            self._plain = Plain()  # for the heads of both in one pass

    def made(self, x: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x` [B, S, D], [B, S, *, H] each, the first two turned."""
        heads, keys, dim = self.num_heads, self.key_heads, self.head_dim
        qk, v = self.qkv(x).unflatten(-1, (-1, dim)).split_with_sizes([heads + keys, keys], -2)
        if self.normed:
            qk = (qk * self._plain.over_rms(qk, self.q_norm.eps)).to(qk.dtype)  # [B, S, N + heads of keys, H]
            for part, norm in zip(qk.split_with_sizes([heads, keys], -2), (self.q_norm, self.k_norm), strict=True):
                part.mul_(norm.weight)
        q, k = turned(qk, own, other).split_with_sizes([heads, keys], -2)
        return q, k, v


class JoinedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.gated = Gated()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gated(*self.gate_up(x).chunk(2, dim=-1)))  # which are gone before the last product
