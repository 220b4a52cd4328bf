"""Stock stage: a prompt becomes text features.

Families declare it with their template, how a prompt is padded and what they take from the encoder's output. Prompts
are encoded one at a time, so a result never depends on company; equal prompts are encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Request
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

Take = Callable[[Any], Any]
"""The encoder's output for one prompt -> features, one tensor or several. Frozen dataclasses: equal ones share runs."""


@dataclass(frozen=True)
class HiddenState:
    """The hidden state number `index` of every token: [S, D]. -1 is the last, after the final norm."""

    index: int = -1

    def __call__(self, output: Any) -> Tensor:
        return output.hidden_states[self.index][0]  # [S, D]


@dataclass(frozen=True)
class HiddenStates:
    """The hidden states number `indices` of every token, side by side: [S, len(indices) * D]."""

    indices: tuple[int, ...]

    def __call__(self, output: Any) -> Tensor:
        return torch.cat([output.hidden_states[index][0] for index in self.indices], dim=-1)


@dataclass(frozen=True)
class Pooled:
    """The encoder's one vector for the whole prompt: [D]."""

    def __call__(self, output: Any) -> Tensor:
        return output.pooler_output[0]  # [D]


@dataclass(frozen=True)
class HiddenAndProjected:
    """The hidden state number `index` of every token, [S, D], and the one vector, projected, of the whole prompt."""

    index: int = -1

    def __call__(self, output: Any) -> tuple[Tensor, Tensor]:
        return output.hidden_states[self.index][0], output.text_embeds[0]


@dataclass(frozen=True)
class Tokens:
    """A prompt as a family's own way makes tokens of it: `ids` and `mask` are [1, S], int64.

    Features are those of the tokens from `first` to before `last`. Of the `whole` tokens of the prompt, `read` are
    there.
    """

    ids: Tensor
    mask: Tensor
    first: int
    last: int
    read: int
    whole: int


@dataclass(frozen=True)
class EncodeText(Stage):
    """Tokenize the prompt of `branch` and run a text encoder over it; what `take` takes is that branch's `text`.

    Tokenizers and encoders, ours too, are called as those of transformers are. `length` fixes the token limit (else the
    request's `max_sequence_length` is it); `pad` fills up to the limit, `masked` hides those pads from the encoder, and
    `zeroed` makes zeros of the features that they have. `template(tokenizer, prompt)` makes the text that is tokenized;
    the features of its first `drop` tokens are left out, and no limit counts these; `marked` ones have all special
    tokens, and get no others. `tokens(tokenizer, prompt, limit)` does all of that in another way. `of(prompt)` is the
    part of a prompt that this encoder reads, None for nothing. Where there is nothing to read, or a request does not
    need the branch, its slot holds None, and where the checkpoint has no such encoder, if that is `optional`.
    """

    branch: str = POSITIVE
    text: str = "embeds"
    take: Take = HiddenState()
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    template: Callable[[Any, str], str] | None = None
    length: int | None = None
    pad: bool = False
    masked: bool = True
    zeroed: bool = False
    drop: int = 0
    marked: bool = False
    tokens: Callable[[Any, str, int], Tokens] | None = None
    of: Callable[[str], str | None] | None = None
    optional: bool = False
    lendable: ClassVar[bool] = True
    computed = True

    @property
    def source(self) -> Literal["prompt", "negative_prompt"]:
        """The field of a request that is read."""
        return "prompt" if self.branch == POSITIVE else "negative_prompt"

    @property
    def name(self) -> str:  # type: ignore[override]
        suffix = "" if self.encoder == "text_encoder" else f" ({self.encoder})"
        return f"encode {self.source.replace('_', ' ')}{suffix}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.source,)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.branch}_{self.text}",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.encoder, self.tokenizer)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        if not self._needed(ctx, state):
            return "not needed"
        return (self, self.words(ctx, state), self._limit(ctx, state.request))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            [slot] = self.writes
            text = self.words(ctx, state) if self._needed(ctx, state) else None
            if text is None:
                state[slot] = None
            else:
                limit = self._limit(ctx, state.request)
                state[slot], state.notes[self.name] = self.encode(ctx, text, limit)

    def words(self, ctx: Context, state: State) -> str | None:
        """What is read for a request, before any template; None for nothing."""
        text = text_of(ctx, state, self.source)
        return text if self.of is None else self.of(text)

    def _needed(self, ctx: Context, state: State) -> bool:
        there = not self.optional or self.encoder in ctx.configs
        return there and self.branch in state.request.branches

    def _limit(self, ctx: Context, request: Request) -> int:
        return self.length or limit_of(ctx, request)

    def encode(self, ctx: Context, text: str, limit: int) -> tuple[Any, TextRead]:
        """The features of `text`, of which `limit` tokens are read, and how much that was."""
        tokenizer = ctx.components[self.tokenizer]
        if self.tokens is not None:
            return self._encode_tokens(ctx, self.tokens(tokenizer, text, limit), limit)
        if self.template is not None:
            text = self.template(tokenizer, text)
        padding = "max_length" if self.pad else False
        length = {"padding": padding, "truncation": True, "max_length": limit + self.drop}
        tokens = tokenizer(text, return_tensors="pt", **length, **self._marks)
        # Counted before they leave: nobody waits for a number to return.
        read = self.counted(tokenizer, text, limit, int(tokens.attention_mask.sum()) - self.drop)
        tokens = tokens.to(ctx.device)
        mask = tokens.attention_mask if self.masked else None  # [1, S]
        output = ctx.network(self.encoder)(tokens.input_ids, attention_mask=mask, output_hidden_states=True)
        features = self.take(output)
        if self.zeroed:
            features = features.masked_fill(~tokens.attention_mask[0].to(torch.bool)[:, None], 0.0)  # [S, D]
        return features[self.drop :].clone() if self.drop else features, read

    def _encode_tokens(self, ctx: Context, tokens: Tokens, limit: int) -> tuple[Tensor, TextRead]:
        ids, mask = tokens.ids.to(ctx.device), tokens.mask.to(ctx.device)
        output = ctx.network(self.encoder)(ids, attention_mask=mask, output_hidden_states=True)
        features = self.take(output)[tokens.first : tokens.last].clone()  # no view: what is around them is let go of
        return features, self.told(tokens.read, tokens.whole, limit)

    @property
    def _marks(self) -> dict[str, bool]:
        """What a tokenizer is told of a text that has all its special tokens."""
        return {"add_special_tokens": False} if self.marked else {}

    def counted(self, tokenizer: Any, text: str, limit: int, tokens: int) -> TextRead:
        """What was read; a text that fills the limit is counted once more, whole."""
        whole = tokens
        if tokens == limit:
            whole = tokenizer(text, return_tensors="pt", verbose=False, **self._marks).input_ids.shape[1] - self.drop
        return self.told(tokens, whole, limit)

    def told(self, tokens: int, whole: int, limit: int) -> TextRead:
        """How many tokens were read, of how many."""
        why = "all that it takes" if self.length else f"max_sequence_length={limit}"
        return TextRead(self.source, self.encoder, tokens, whole - tokens, why if whole > tokens else "")


def limit_of(ctx: Context, request: Request) -> int:
    """How many tokens of a prompt are read."""
    return request.params.max_sequence_length or ctx.limits.max_sequence_length


def text_of(ctx: Context, state: State, source: str) -> str:
    """The prompt or the negative prompt of a request; where nobody gave the latter, the one of the family."""
    text: str | None = state[source]
    if text is None and ctx.spec.guidance is not None:
        text = ctx.spec.guidance.negative
    return text or ""


def for_both_branches(*stages: EncodeText) -> tuple[EncodeText, ...]:
    """`stages`, which encode prompts, and then the same for negative prompts."""
    return (*stages, *(replace(stage, branch=NEGATIVE) for stage in stages))
