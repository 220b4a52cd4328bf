"""What speaks in Qwen3-Omni: a talker that says the first code of every frame, a predictor of the others, and what
makes a waveform of these.

The arithmetic is that of transformers' `Qwen3OmniMoeTalkerForConditionalGeneration` and `Qwen3OmniMoeCode2Wav`. The
talker has experts and hears what the thinker embeds; all else is as in Qwen3-TTS.

Letters: R rows, S places, D width, E width of the thinker, Q codebooks, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.decoder import DecoderLayer
from omnimuse.components.qwen3_facts import rotation
from omnimuse.components.sights import woven
from omnimuse.components.speech_codec import (
    KERNEL,
    THETA,
    CausalConv,
    CausalUp,
    Codec,
    Level,
    Mixing,
    Past,
    Snake,
    SpeechCodecConfig,
    Windowed,
)
from omnimuse.components.voice import CodePredictor, TextProjection, Voice
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.models.qwen3_omni.experts import SharedExperts
from omnimuse.models.qwen3_omni.facts import IGNORED, SECTIONS, TalkerFacts, predictor_of, talker_of

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
        return cls(predictor_of(config))


class Code2Wav(Codec):
    """Codes of frames, int64 [Q, T], to a waveform: `hop` samples a frame, less what nothing stands before.

    As transformers' with the whole at once; piece by piece it is the same.
    """

    def __init__(self, config: SpeechCodecConfig) -> None:
        super().__init__()
        self.config, c = config, config
        self.hop = prod((*c.upsample_rates, *c.upsampling_ratios))
        widths = [c.decoder_dim // 2**level for level in range(len(c.upsample_rates) + 1)]
        self.code_embedding = nn.Embedding(c.codebook_size * c.num_quantizers, c.hidden_size)
        self.pre_transformer = Windowed(config, other=False)
        self.upsample = nn.ModuleList(
            nn.ModuleList([CausalUp(c.hidden_size, c.hidden_size, ratio, ratio), Mixing(c.hidden_size)])
            for ratio in c.upsampling_ratios
        )
        levels = zip(pairwise(widths), c.upsample_rates, strict=True)
        self.decoder = nn.ModuleList(
            [
                CausalConv(c.hidden_size, c.decoder_dim, KERNEL),
                *(Level(width, out, rate, late=True) for (width, out), rate in levels),
                Snake(widths[-1]),
                CausalConv(widths[-1], 1, KERNEL),
            ]
        )

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

    def forward(self, codes: Tensor, past: Past | None = None) -> Tensor:
        past, c = past or Past(), self.config
        books = torch.arange(c.num_quantizers, device=codes.device)[:, None] * c.codebook_size
        hidden = self.code_embedding(codes + books).mean(0)  # [T, C]
        hidden = self.pre_transformer(hidden, past).T[None]
        for parts in (*self.upsample, self.decoder):
            for each in parts:
                hidden = each(hidden, past)
        past.frames += codes.shape[1]
        return hidden[0, 0].clamp(-1, 1)
