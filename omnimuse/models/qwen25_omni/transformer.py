"""The two decoders of Qwen2.5-Omni (arXiv 2503.20215): a thinker that reads and writes, and a talker that says codes.

The arithmetic is that of transformers' `Qwen2_5OmniThinkerForConditionalGeneration` and
`Qwen2_5OmniTalkerForConditionalGeneration`. A token has a place on three axes; of the pairs of a head, first some turn
by time, then some by rows, then some by columns.

Letters: R rows, S tokens of a row, D width, E width of the thinker, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.attention.layout import Layout
from omnimuse.components.answering_facts import TALKER, THINKER
from omnimuse.components.sights import Seeing, ShownDecoder, in_turn
from omnimuse.components.voice import Voice
from omnimuse.loader.facts import part
from omnimuse.models.qwen25_omni.facts import DecoderFacts, talker_of, thinker_of


@dataclass(frozen=True)
class Pondering(Seeing):
    """A row of which the talker hears: the normed hidden states of its tokens go into `thought`, [S, E]."""

    thought: Tensor | None = None


class Thinker(ShownDecoder):
    """A dense decoder that leaves what it thought of each token for who asks."""

    def __init__(self, facts: DecoderFacts, *, tied: bool) -> None:
        super().__init__(facts.layers, in_turn(facts.sections))
        if tied:
            self.head.weight = self.embed_tokens.weight

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Thinker:
        return cls(thinker_of(config), tied=bool(part(config, THINKER).get("tie_word_embeddings", False)))

    def leave(self, rows: Sequence[Reading], layout: Layout, hidden: Tensor) -> None:
        if not any(isinstance(row, Pondering) for row in rows):
            return
        parts = list(hidden) if layout.length == 1 else layout.unpack(hidden)
        for row, own in zip(rows, parts, strict=False):  # there may be more than rows
            if isinstance(row, Pondering) and row.thought is not None:
                row.thought.copy_(self.norm(own))


class Talker(Voice):
    """What the thinker thought and embedded, beside the codes that were said -> as every `Voice`."""

    def __init__(self, facts: DecoderFacts, heard: int) -> None:
        super().__init__(facts.layers, axes=in_turn(facts.sections))
        self.codec_embedding = nn.Embedding(facts.layers.vocab_size, heard)
        self.thinker_to_talker_proj = nn.Linear(heard, facts.layers.hidden_size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Talker:
        return cls(talker_of(config), int(part(config, TALKER).get("embedding_size", 3584)))

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.thinker_to_talker_proj(given)
