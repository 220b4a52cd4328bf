"""What the config.json of a Qwen3-TTS checkpoint says of its two networks.

The published files carry every setting that transformers has, so keys that nobody here knows are passed over; those
that would change the arithmetic are known, and refused at another value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.components.qwen3_facts import PredictorFacts, Qwen3Config, layers_of, predictor_of, rotation
from omnimuse.loader.facts import part
from omnimuse.models.qwen3_tts.marks import PREDICTOR, TALKER

FIXED: Mapping[str, Sequence[Any]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
}


@dataclass(frozen=True)
class TalkerFacts:
    """The talker's layers, and the texts that it reads."""

    layers: Qwen3Config
    text_vocab_size: int
    text_hidden_size: int


def talker_of(config: Mapping[str, Any]) -> TalkerFacts:
    """The talker's facts; ModelError for a variant that is not computed here."""
    given = part(config, TALKER)
    theta, _ = rotation(given, TALKER, woven=True)  # all three places are equal
    texts = {name: given.get(name, usual) for name, usual in (("text_vocab_size", 151936), ("text_hidden_size", 2048))}
    return TalkerFacts(layers_of(Qwen3Config, given, TALKER, theta, FIXED), **texts)


def predictor_facts(config: Mapping[str, Any]) -> PredictorFacts:
    """The predictor's facts; ModelError for a variant that is not computed here."""
    talker = part(config, TALKER)
    return predictor_of(talker, TALKER, PREDICTOR, int(talker["hidden_size"]), FIXED)
