"""The thinker of Qwen3-Omni (arXiv 2509.17765): a decoder with experts that reads a conversation and writes an answer.

The arithmetic is that of transformers' `Qwen3OmniMoeThinkerForConditionalGeneration`. What is shown stands among the
tokens (`vision.py`, `hearing.py` make it), and the first layers are told more of what is seen. A token has a place on
three axes, by which pairs of a head turn in alternation.

Letters: D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from omnimuse.ar.remembering import Conditions
from omnimuse.components.experts import Experts, ExpertsLayer
from omnimuse.components.sights import ShownDecoder, Sights, woven
from omnimuse.models.qwen3_omni.facts import DecoderFacts, accepted, thinker_of


class Thinker(ShownDecoder):
    """A decoder with experts; behind the `accepted` first layers the talker hears of what is shown."""

    def __init__(self, facts: DecoderFacts, accepted: int) -> None:
        axes = woven(facts.sections, facts.layers.head_dim // 2)
        super().__init__(facts.layers, axes, partial(ThinkerLayer, facts, accepted))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Thinker:
        return cls(thinker_of(config), accepted(config))


class ThinkerLayer(ExpertsLayer):
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
