"""What speaks in Qwen3-Omni: a talker that says the first code of every frame, a predictor of the others, and what
makes a waveform of these.

The arithmetic is that of transformers' `Qwen3OmniMoeTalkerForConditionalGeneration` and `Qwen3OmniMoeCode2Wav`. The
talker has experts and hears what the thinker embeds; all else is as in Qwen3-TTS.

Letters: S places, D width, E width of the thinker.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from omnimuse.components.decoder import DecoderLayer
from omnimuse.components.experts import SharedExperts
from omnimuse.components.qwen3_facts import rotation
from omnimuse.components.sights import woven
from omnimuse.components.speech_codec import THETA, SpeechCodecConfig
from omnimuse.components.summed_codec import SummedCodec
from omnimuse.components.voice import CodePredictor, TextProjection, Voice
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen3_omni.facts import IGNORED, SECTIONS, TalkerFacts, predictor_facts, talker_of

WAVES = "code2wav_config"


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
    return DecoderLayer(facts.decoder.layers, layer, SharedExperts(width, facts.decoder.experts, facts.shared))


class OmniPredictor(CodePredictor):
    """A predictor, as this checkpoint's config.json has it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> OmniPredictor:
        return cls(predictor_facts(config))


class Code2Wav(SummedCodec):
    """A codec's decoder, as this checkpoint's config.json has it."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Code2Wav:
        """What the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given, where = part(config, WAVES), f"config.json, {WAVES}"
        fixed = {"hidden_act": ("silu",), "attention_bias": (False,), "rope_theta": (THETA,)}
        known = known_of(given, SpeechCodecConfig, ("hidden_act", "attention_bias"))
        usual = {"hidden_size": 1024, "intermediate_size": 3072}
        width = given.get("hidden_size", usual["hidden_size"])
        heads = width // given.get("num_attention_heads", SpeechCodecConfig.num_attention_heads)
        rope = {name: given[name] for name in ("rope_theta", "rope_parameters") if name in given}
        theta = rotation({"rope_theta": THETA, **rope}, where, SECTIONS, woven=True)[0]
        facts = {**usual, **known, "latent_dim": width, "head_dim": heads, "rope_theta": theta}
        return cls(read_facts(SpeechCodecConfig, facts, where, fixed, IGNORED))
