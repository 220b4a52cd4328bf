"""The Qwen3 language model (arXiv 2505.09388) as a decoder; the arithmetic is that of transformers' `Qwen3ForCausalLM`.

Letters: R rows, D width, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.components.decoder import DenseDecoder
from omnimuse.components.qwen3_facts import Qwen3Config

WHERE = "config.json"


class Qwen3Decoder(DenseDecoder):
    """Tokens and what came before them -> logits of the next one."""

    def __init__(self, config: Qwen3Config, tied: bool) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied:
            self.head.weight = self.embed_tokens.weight

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Qwen3Decoder:
        return cls(Qwen3Config.from_dict(config, WHERE), bool(config.get("tie_word_embeddings", False)))

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.embed_tokens(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)
