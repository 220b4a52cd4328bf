"""The decoders of what speaks: a voice that says the first code of every frame, and a predictor of the others.

Both read what stands for tokens, not tokens. Rows are laid end to end for every layer but attention.

Letters: R rows, S tokens of a row, D width, V codes, G codes of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.components.decoder import DecoderLayer, DenseDecoder
from omnimuse.components.qwen3_facts import PredictorFacts, Qwen3Config
from omnimuse.components.sights import PlacedDecoder


class Voice(PlacedDecoder):
    """What is to be said, and what was -> logits of the first code of the next frame [V] and, behind them, the hidden
    state [D] of which the predictor makes the others. Both come to the CPU, which chooses, in one transfer of all rows.
    """

    def __init__(
        self,
        config: Qwen3Config,
        make: Callable[[int], DecoderLayer] | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, make, axes)
        self.codec_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.codec_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return given

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return torch.cat([self.codec_head(last), last], dim=-1)

    def heard(self, codes: Tensor) -> Tensor:
        """What stands for first codes of frames, [S] -> [S, D]."""
        return self.codec_embedding(codes)


class CodePredictor(DenseDecoder):
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

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.small_to_mtp_projection(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        heads = [row.start + row.count - 2 for row in rows]
        if len(set(heads)) == 1:  # frames are begun together, so they always are at one place
            return self.heads[heads[0]](last)
        return torch.stack([self.heads[head](each) for head, each in zip(heads, last[: len(rows)], strict=True)])

    def heard(self, number: int, code: Tensor) -> Tensor:
        """What stands for codes number `number` of frames (1: the first that this network tells), [S] -> [S, D]."""
        return self.codec_embedding[number - 1](code)


class TextProjection(nn.Module):
    """From the width of texts to that of the talker."""

    def __init__(self, text: int, between: int, width: int) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(text, between)
        self.activation = nn.SiLU()
        self.linear_fc2 = nn.Linear(between, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(self.activation(self.linear_fc1(x)))
