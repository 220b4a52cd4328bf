"""The decoder of a speech codec whose every code has what stands for it: convolutions and attention, always onwards.

The names of the weights are those of transformers' `Code2Wav` models. Its parts are those of `speech_codec.py`.

Letters: Q codebooks, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.qwen3_facts import ROPE, rotation
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
from omnimuse.loader.facts import known_of, part, read_facts

WAVES = "code2wav_config"


class SummedCodec(Codec):
    """Codes of frames, int64 [Q, T], to a waveform: `hop` samples a frame, less what nothing stands before.

    What stands for the codes of a frame is their mean; piece by piece it is what it is with the whole at once.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SummedCodec:
        """What the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        given, where = part(config, WAVES), f"config.json, {WAVES}"
        fixed = {"hidden_act": ("silu",), "attention_bias": (False,), "rope_theta": (THETA,)}
        known = known_of(given, SpeechCodecConfig, ("hidden_act", "attention_bias"))
        usual = {"hidden_size": 1024, "intermediate_size": 3072}
        width = given.get("hidden_size", usual["hidden_size"])
        heads = width // given.get("num_attention_heads", SpeechCodecConfig.num_attention_heads)
        rope = {name: given[name] for name in ROPE[:2] if name in given}
        theta = rotation({"rope_theta": THETA, **rope}, where, woven=True)[0]
        facts = {**usual, **known, "latent_dim": width, "head_dim": heads, "rope_theta": theta}
        return cls(read_facts(SpeechCodecConfig, facts, where, fixed))

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
