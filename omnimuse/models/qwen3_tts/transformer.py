"""The two decoders of Qwen3-TTS: a talker that says the first code of every frame, and a predictor of the others.

The arithmetic is that of the published code (`qwen_tts`, `Qwen3TTSTalkerForConditionalGeneration`). A place of the
talker is the sum of a text's and a code's. Its three axes of places are always equal, so they turn a head as one does.

Letters: S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from omnimuse.components.voice import CodePredictor, TextProjection, Voice
from omnimuse.models.qwen3_tts.facts import TalkerFacts, predictor_facts, talker_of


class Talker(Voice):
    """A voice that reads the text itself."""

    def __init__(self, facts: TalkerFacts) -> None:
        super().__init__(facts.layers)
        width = facts.layers.hidden_size
        self.text_embedding = nn.Embedding(facts.text_vocab_size, facts.text_hidden_size)
        self.text_projection = TextProjection(facts.text_hidden_size, facts.text_hidden_size, width)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Talker:
        return cls(talker_of(config))

    def read(self, ids: Tensor) -> Tensor:
        """What stands for the tokens of a text, [S] -> [S, D]."""
        return self.text_projection(self.text_embedding(ids))


class Predictor(CodePredictor):
    """A predictor, as this checkpoint's config.json has it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Predictor:
        return cls(predictor_facts(config))
