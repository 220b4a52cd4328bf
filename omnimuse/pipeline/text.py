"""Stock stage: a prompt becomes text features.

Families declare it with their template, the hidden state they want and how long a prompt may be. Prompts are encoded
one at a time at their true length, so a result never depends on company; equal prompts are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeText(Stage):
    """Tokenize `source` (a request field) and run a transformers text encoder over it.

    Writes `into`: features [S, D] of the real tokens, no padding; or None where `when` says that this request does not
    need them. `template` turns the prompt into the text that is tokenized; `hidden` picks the hidden state (-1 is the
    last, after the final norm).
    """

    source: Literal["prompt", "negative_prompt"]
    into: str
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    template: Callable[[Any, str], str] | None = None
    hidden: int = -1
    when: Callable[[Request], bool] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"encode {self.source.replace('_', ' ')}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.source,)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.into,)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.encoder, self.tokenizer)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        if not self._needed(state.request):
            return ("absent",)
        limit = state.request.params.max_sequence_length
        return (self.encoder, self.tokenizer, self.template, self.hidden, state[self.source] or "", limit)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            if not self._needed(state.request):
                state[self.into] = None
                continue
            limit = state.request.params.max_sequence_length or ctx.limits.max_sequence_length
            ids = self._token_ids(ctx, state[self.source] or "", limit)  # [1, S]
            state[self.into] = self._features(ctx, ids)  # [S, D]

    def _needed(self, request: Request) -> bool:
        return self.when is None or self.when(request)

    def _token_ids(self, ctx: Context, text: str, limit: int) -> Tensor:
        tokenizer = ctx.components[self.tokenizer]
        if self.template is not None:
            text = self.template(tokenizer, text)
        ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt").input_ids
        return ids.to(ctx.device)

    def _features(self, ctx: Context, ids: Tensor) -> Tensor:
        mask = torch.ones_like(ids)
        states = ctx.network(self.encoder)(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        return states[self.hidden][0]  # [S, D]
