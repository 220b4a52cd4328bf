"""The two decoders of Qwen3-TTS: a talker that says the first code of every frame, and a predictor of the others.

The arithmetic is that of the published code (`qwen_tts`, `Qwen3TTSTalkerForConditionalGeneration`). Both read what
stands for tokens, not tokens: a place of the talker is the sum of a text's and a code's. Its three axes of places are
always equal, so they turn a head as one does. Rows are laid end to end for every layer but attention.

Letters: R rows, S tokens of a row, T of all rows, D width, N heads, H head dim, V codes, G codes of a frame.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.ar.kv import Decoder, Reading, Sizes
from omnimuse.ar.remembering import Conditions
from omnimuse.attention.layout import Layout
from omnimuse.components.qwen3 import Qwen3Config
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.models.qwen3_text.transformer import DecoderLayer
from omnimuse.models.qwen3_tts.facts import PredictorFacts, TalkerFacts, predictor_of, talker_of

FEWEST = 256
"""Positions whose rotations are made at first."""


class Voice(Decoder):
    """What both are: layers over what stands for tokens [S, D]; `say` makes a prediction of the last hidden states."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.config = config
        self.layers = BlockStack(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._turns: Tensor | None = None

    def stacks(self) -> dict[str, BlockStack]:
        return {"layers": self.layers}

    @property
    def sizes(self) -> Sizes:
        c = self.config
        return Sizes(c.num_hidden_layers, c.num_key_value_heads, c.head_dim, self.norm.weight.dtype)

    def forward(self, rows: Sequence[Reading], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        layout = Layout(tuple(len(row.ids) for row in rows))
        hidden = self.enter(layout.pack([row.ids for row in rows]))  # [1, T, D] or [R, S, D]
        hidden = self.layers(hidden, self._conditions(rows, layout, hidden.dtype), memories)
        last = torch.stack([row[-1] for row in layout.unpack(hidden)])  # [R, D]
        return self.say(rows, self.norm(last))

    def enter(self, given: Tensor) -> Tensor:
        """What stands for tokens in the width of the layers."""
        return given

    @abstractmethod
    def say(self, rows: Sequence[Reading], last: Tensor) -> list[Tensor]:
        """The predictions of `rows` from the normed hidden state of the last token of each, [R, D]."""

    def _conditions(self, rows: Sequence[Reading], layout: Layout, dtype: torch.dtype) -> Conditions:
        ends = [row.start + len(row.ids) for row in rows]
        turns = self._turned(max(ends), rows[0].ids.device, dtype)
        if layout.length == 1:
            places = torch.tensor([[row.start] for row in rows], device=turns.device)
            cos, sin = turns[:, places].unbind()  # [R, 1, 1, H/2] each
        else:
            spans = [slice(row.start, end) for row, end in zip(rows, ends, strict=True)]
            cos, sin = (layout.pack([part[span] for span in spans]) for part in turns)
        return Conditions.of(rows, layout, cos, sin)

    def _turned(self, tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The cosines and sines of at least the first `tokens` positions, [2, S, 1, H/2]: made once, not every step."""
        known = self._turns
        if known is None or known.shape[1] < tokens or known.device != device or known.dtype != dtype:
            positions = torch.arange(max(FEWEST, 2 * tokens), device=device)[:, None]
            table = rotary_table(positions, (self.config.head_dim,), self.config.rope_theta).to(dtype)
            known = self._turns = torch.stack([table[:, :1, :, 0], table[:, 1:, :, 1]])
        return known


class Talker(Voice):
    """What is to be said, and what was -> logits of the first code of the next frame [V] and, behind them, the hidden
    state [D] of which the predictor makes the others.
    """

    def __init__(self, facts: TalkerFacts) -> None:
        super().__init__(facts.layers)
        width = facts.layers.hidden_size
        self.codec_embedding = nn.Embedding(facts.layers.vocab_size, width)
        self.text_embedding = nn.Embedding(facts.text_vocab_size, facts.text_hidden_size)
        self.text_projection = TextProjection(facts.text_hidden_size, width)
        self.codec_head = nn.Linear(width, facts.layers.vocab_size, bias=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Talker:
        return cls(talker_of(config))

    def say(self, rows: Sequence[Reading], last: Tensor) -> list[Tensor]:
        return list(torch.cat([self.codec_head(last), last], dim=-1).unbind())

    def read(self, ids: Tensor) -> Tensor:
        """What stands for the tokens of a text, [S] -> [S, D]."""
        return self.text_projection(self.text_embedding(ids))

    def heard(self, codes: Tensor) -> Tensor:
        """What stands for first codes of frames, [S] -> [S, D]."""
        return self.codec_embedding(codes)


class Predictor(Voice):
    """What the talker thought of a frame, and its codes so far -> logits of the next code [V].

    Place p tells code number p, with a head of its own.
    """

    def __init__(self, facts: PredictorFacts) -> None:
        super().__init__(facts.layers)
        width, codes = facts.layers.hidden_size, facts.layers.vocab_size
        self.codec_embedding = nn.ModuleList(nn.Embedding(codes, facts.talker_width) for _ in range(facts.groups - 1))
        self.heads = nn.ModuleList(nn.Linear(width, codes, bias=False) for _ in range(facts.groups - 1))
        narrows = width != facts.talker_width
        self.small_to_mtp_projection = nn.Linear(facts.talker_width, width) if narrows else nn.Identity()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Predictor:
        return cls(predictor_of(config))

    def enter(self, given: Tensor) -> Tensor:
        return self.small_to_mtp_projection(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> list[Tensor]:
        heads = [row.start + len(row.ids) - 2 for row in rows]
        if len(set(heads)) == 1:  # frames are begun together, so they always are at one place
            return list(self.heads[heads[0]](last).unbind())
        return [self.heads[head](each) for head, each in zip(heads, last, strict=True)]

    def heard(self, number: int, code: Tensor) -> Tensor:
        """What stands for codes number `number` of frames (1: the first that this network tells), [S] -> [S, D]."""
        return self.codec_embedding[number - 1](code)


class TextProjection(nn.Module):
    """From the width of texts to that of the talker."""

    def __init__(self, text: int, width: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(text, text)
        self.linear_fc2 = nn.Linear(text, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.silu(self.linear_fc1(x)))
