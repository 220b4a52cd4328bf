"""What speaks in Qwen3-Omni: a talker that says the first code of every frame, and a predictor of the others.

The arithmetic is that of transformers' `Qwen3OmniMoeTalkerForConditionalGeneration`. The talker has experts and hears
what the thinker embeds; all else is as in Qwen3-TTS.

Letters: S places, D width, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from omnimuse.components.decoder import DecoderLayer
from omnimuse.components.experts import ExpertsLayer, SharedExperts
from omnimuse.components.sights import woven
from omnimuse.components.voice import CodePredictor, TextProjection, Voice
from omnimuse.models.qwen3_omni.facts import TalkerFacts, predictor_facts, talker_of


class OmniTalker(Voice):
    """What the thinker embeds, or has made of what it is shown, and what was said -> as every `Voice`."""

    def __init__(self, facts: TalkerFacts) -> None:
        layers = facts.decoder.layers
        super().__init__(layers, partial(_layer, facts), woven(facts.decoder.sections, layers.head_dim // 2))
        self.text_projection = TextProjection(facts.heard, facts.between, layers.hidden_size)
        self.hidden_projection = TextProjection(facts.heard, facts.between, layers.hidden_size)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OmniTalker:
        return cls(talker_of(config))

    def read(self, embedded: Tensor) -> Tensor:
        """What stands for tokens that the thinker has embedded, [S, E] -> [S, D]."""
        return self.text_projection(embedded)

    def perceive(self, hidden: Tensor) -> Tensor:
        """What stands for something shown, of which the thinker made this, [S, E] -> [S, D]."""
        return self.hidden_projection(hidden)


def _layer(facts: TalkerFacts, layer: int) -> DecoderLayer:
    width = facts.decoder.layers.hidden_size
    return ExpertsLayer(facts.decoder.layers, layer, SharedExperts(width, facts.decoder.experts, facts.shared))


class OmniPredictor(CodePredictor):
    """A predictor, as this checkpoint's config.json has it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OmniPredictor:
        return cls(predictor_facts(config))
