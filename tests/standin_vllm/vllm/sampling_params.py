"""What a text is asked for with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class RequestOutputKind(Enum):
    DELTA = 1


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    min_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    logit_bias: dict[Any, float] | None
    seed: int
    detokenize: bool
    output_kind: RequestOutputKind
