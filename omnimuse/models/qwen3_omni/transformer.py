"""The thinker of Qwen3-Omni (arXiv 2509.17765): a decoder with experts that reads a conversation and writes an answer.

The arithmetic is that of transformers' `Qwen3OmniMoeThinkerForConditionalGeneration`. What is shown stands among the
tokens (`vision.py`, `hearing.py` make it), and the first layers are told more of what is seen. A token has a place on
three axes, by which pairs of a head turn in alternation; of a text all three are equal, so it turns as any other does.

Letters: R rows, S tokens of a row, T of all rows, D width, V words, M tokens of all rows that stand for something
shown, L layers that are told more, P pairs of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.attention.layout import Layout
from omnimuse.models.qwen3_omni.experts import Experts
from omnimuse.models.qwen3_omni.facts import DecoderFacts, accepted, thinker_of
from omnimuse.models.qwen3_omni.vision import Seen
from omnimuse.models.qwen3_text.transformer import DecoderLayer, DenseDecoder


@dataclass(frozen=True)
class Seeing(Reading):
    """A row of a conversation in which something is shown: its tokens are `shift` places further on than counted or,
    within the prompt, turn by `turns`, [2, S, 1, P]; `at` some of them, bool [S], stands what is `seen`. What the
    talker hears of these goes into `heard`, [M, D].
    """

    shift: int = 0
    turns: Tensor | None = None
    at: Tensor | None = None
    seen: Seen | None = None
    heard: Tensor | None = None

    @property
    def place(self) -> int:
        return self.start + self.shift


@dataclass(frozen=True)
class Sights(Conditions):
    """What every layer receives of rows of which some are shown something."""

    @cached_property
    def seen(self) -> tuple[Tensor, Seen | None]:
        """Which of all tokens, laid end to end, stand for something, [M], and what does."""
        masks, found = list[Tensor](), list[Seen]()
        for row in self.rows:
            if isinstance(row, Seeing) and row.at is not None and row.seen is not None:
                masks.append(row.at)
                found.append(row.seen)
            else:
                masks.append(torch.zeros(len(row.ids), dtype=torch.bool, device=row.ids.device))
        return torch.cat(masks).nonzero()[:, 0], Seen.joined(found) if found else None

    def show(self, hidden: Tensor) -> Tensor:
        """What stands for tokens, [*, D], with what is shown in its place."""
        where, seen = self.seen
        if seen is None:
            return hidden
        return hidden.flatten(0, 1).index_copy(0, where, seen.shown.to(hidden.dtype)).view_as(hidden)

    def overhear(self, hidden: Tensor) -> None:
        """Give every row that wants them the hidden states of what it is shown."""
        at = 0
        for row in self.rows:
            if isinstance(row, Seeing) and row.seen is not None:
                if row.heard is not None:
                    where = self.seen[0][at : at + len(row.seen.shown)]
                    row.heard.copy_(hidden.flatten(0, 1)[where])
                at += len(row.seen.shown)

    def tell(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states behind a layer, [*, D], with what is told there."""
        where, seen = self.seen
        if seen is None or layer >= len(seen.deep):
            return hidden
        return hidden.flatten(0, 1).index_add(0, where, seen.deep[layer].to(hidden.dtype)).view_as(hidden)


def turns_of(facts: DecoderFacts, places: Tensor) -> Tensor:
    """Cosines and sines of the angles by which tokens at `places`, int64 [3, S], turn: [2, S, 1, P]."""
    pairs = facts.layers.head_dim // 2
    axes = [0] * pairs
    for axis in (1, 2):
        turned = range(axis, facts.sections[axis] * 3, 3)
        axes[turned.start : turned.stop : 3] = [axis] * len(turned)
    speeds = 1.0 / facts.layers.rope_theta ** (torch.arange(pairs, device=places.device).float() / pairs)
    angles = places.float()[axes].T * speeds  # [S, P]
    return torch.stack([angles.cos(), angles.sin()])[:, :, None]


def spans_of(decoder: DenseDecoder, rows: Sequence[Reading], layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of rows of which some have `turns` of their own, packed; None where none has."""
    own = [row.turns if isinstance(row, Seeing) else None for row in rows]
    if all(each is None for each in own):
        return None
    turns = decoder.turned(max(row.place + len(row.ids) for row in rows), rows[0].ids.device)
    spans = [
        turns[:, row.place : row.place + len(row.ids)] if each is None else each.to(turns.dtype)
        for row, each in zip(rows, own, strict=True)
    ]
    if layout.length == 1:
        spans += spans[:1] * (decoder.fewest - len(rows))  # nobody looks at what comes of more
        cos, sin = torch.stack(spans, dim=1).unbind()
        return cos, sin
    cos, sin = (layout.pack([span[side] for span in spans]) for side in (0, 1))
    return cos, sin


class Thinker(DenseDecoder):
    """Tokens, what is shown and what came before them -> logits of the next token.

    Behind the `accepted` first layers the talker hears of what is shown.
    """

    def __init__(self, facts: DecoderFacts, accepted: int) -> None:
        super().__init__(facts.layers, partial(ThinkerLayer, facts, accepted))
        self.facts, layers = facts, facts.layers
        self.embed_tokens = nn.Embedding(layers.vocab_size, layers.hidden_size)
        self.head = nn.Linear(layers.hidden_size, layers.vocab_size, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Thinker:
        return cls(thinker_of(config), accepted(config))

    def turns(self, places: Tensor) -> Tensor:
        """By what tokens at `places`, int64 [3, S], turn: [2, S, 1, P]."""
        return turns_of(self.facts, places)

    def conditions(self, rows: Sequence[Reading], layout: Layout) -> Conditions:
        spans = spans_of(self, rows, layout)
        return super().conditions(rows, layout) if spans is None else Sights.of(rows, layout, *spans)

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        hidden = self.embed_tokens(given)
        return cond.show(hidden) if isinstance(cond, Sights) else hidden

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)


class ThinkerLayer(DecoderLayer):
    """A layer of experts, behind which more may be told of what is seen."""

    def __init__(self, facts: DecoderFacts, accepted: int, layer: int) -> None:
        super().__init__(facts.layers, layer, Experts(facts.layers.hidden_size, facts.experts))
        self.layer, self.heard = layer, layer == accepted - 1

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden = super().forward(hidden, cond)
        if not isinstance(cond, Sights):
            return hidden
        if self.heard:
            cond.overhear(hidden)  # as the reference has it: before more is told
        return cond.tell(self.layer, hidden)
