"""Which token comes next: the rules of transformers' `generate`, in its order, with a generator that is passed in.

Letters: V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.errors import NumericalError
from omnimuse.core.params import GenerationParams, TokenParams

TOP_K = 50
"""What transformers samples from where nobody says."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, complete; `ends` are the tokens after which nothing comes."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    min_tokens: int
    suppressed: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token comes, of those that are not forbidden, whatever was written before."""
        return not self.temperature and self.repetition_penalty == 1.0

    def forbidden(self, written: int) -> tuple[int, ...]:
        """The tokens that cannot come after so many that were written."""
        return (*self.suppressed, *self.ends) if written < self.min_tokens else self.suppressed

    @staticmethod
    def of(chosen: TokenParams, told: Mapping[str, Any]) -> Sampling:
        """What a request chose, and else what the checkpoint's generation_config.json, `told`, has."""
        usual = float(told.get("temperature") or 1.0) if told.get("do_sample") else 0.0
        temperature = usual if chosen.temperature is None else chosen.temperature
        top_k, top_p = told.get("top_k"), told.get("top_p")
        penalty = told.get("repetition_penalty")
        ends = told.get("eos_token_id")
        own = chosen.suppressed if isinstance(chosen, GenerationParams) else ()
        return Sampling(
            temperature=temperature,
            top_k=int(TOP_K if top_k is None else top_k) if chosen.top_k is None else chosen.top_k,
            top_p=float(1.0 if top_p is None else top_p) if chosen.top_p is None else chosen.top_p,
            repetition_penalty=float(penalty or 1.0)
            if chosen.repetition_penalty is None
            else chosen.repetition_penalty,
            min_tokens=max(chosen.min_tokens, int(told.get("min_new_tokens") or 0)),
            suppressed=(*own, *(told.get("suppress_tokens") or ())),
            ends=() if ends is None else tuple(ends) if isinstance(ends, list) else (int(ends),),
        )


def next_token(logits: Tensor, read: Sequence[int], written: int, how: Sampling, generator: torch.Generator) -> int:
    """The token after those in `read`, the last `written` of which are the model's own; from logits [V] on the CPU.

    NumericalError where these are no numbers.
    """
    if logits.max().isnan():
        raise no_numbers()
    held = how.ends and written < how.min_tokens
    if how.greedy:
        likeliest = int(logits.argmax())
        if likeliest not in how.suppressed and not (held and likeliest in how.ends):
            return likeliest  # whatever is forbidden is not the likeliest
    scores = logits.to(torch.float32, copy=True)[None]  # [1, V]
    if how.repetition_penalty != 1.0:
        known = torch.tensor([list(read)], dtype=torch.int64)
        found = scores.gather(1, known)
        found = torch.where(found < 0, found * how.repetition_penalty, found / how.repetition_penalty)
        scores = scores.scatter(1, known, found)
    if held:
        scores[:, list(how.ends)] = -torch.inf
    if how.suppressed:
        scores[:, list(how.suppressed)] = -torch.inf
    if how.temperature == 0:
        return int(scores.argmax())
    scores = scores / how.temperature
    if 0 < how.top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(how.top_k).values[:, -1:], -torch.inf)
    if how.top_p < 1.0:
        scores = _nucleus(scores, how.top_p)
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def no_numbers() -> NumericalError:
    """What is said of logits that are none."""
    return NumericalError("the model's logits are not numbers (NaN); another prompt or --dtype float32 may help")


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Only the likeliest words that together have at least `top_p`; always one."""
    ordered, order = scores.sort(descending=False)
    rare = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    rare[:, -1:] = False
    return scores.masked_fill(rare.scatter(1, order, rare), -torch.inf)
