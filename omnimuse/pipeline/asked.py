"""Stock stages of models that write and have drawn what their answers ask for: from an answer to its picture.

What stands between two marks of an answer is a prompt. The stages behind it are those of any picture; where an answer
asks for none, they leave everything at None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch

from omnimuse.core.guidance import POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.spec import GENERATION, Configs
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText

ASKED = "asked"
"""The slot with the prompt of the picture, or None."""
Kind = TypeVar("Kind", bound=Stage)


@dataclass(frozen=True)
class Answer(Generate):
    """From `prompt_ids` to `reply`, and `asked`: what of it stands between the tokens that `marks(configs)` says.

    Tokens are drawn with a generator of their own of the output's seed, so that the picture is the one of that seed.
    """

    marks: Callable[[Configs], tuple[int, int]] = field(kw_only=True)
    writes: tuple[str, ...] = ("kv", "reply", ASKED)

    def told(self, ctx: Context) -> Mapping[str, Any]:
        return ctx.configs.get(f"{self.network}/{GENERATION}", {})

    def generator(self, state: State) -> torch.Generator:
        return torch.Generator().manual_seed(state.request.seed(state.output))

    def finish(self, ctx: Context, state: State) -> None:
        super().finish(ctx, state)
        written = state.working["tokens"][len(state["prompt_ids"]) :]
        decode = ctx.components[self.tokenizer].decode
        prompts = [text for ids in between(written, *self.marks(ctx.configs)) if (text := decode(ids).strip())]
        state[ASKED] = next(iter(prompts), None)
        if len(prompts) > 1:
            state.said.append(f"the answer asks for {len(prompts)} pictures; the first of them was drawn")


def between(tokens: Sequence[int], opens: int, closes: int) -> list[list[int]]:
    """What stands between an opening token and the next closing one, wherever both are there."""
    found, start = list[list[int]](), None
    for place, token in enumerate(tokens):
        if token == opens and start is None:
            start = place + 1
        elif token == closes and start is not None:
            found.append(list(tokens[start:place]))
            start = None
    return found


@dataclass(frozen=True)
class EncodeAsked(EncodeText):
    """The features of what was asked for, and of the request's negative prompt if anything was."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (ASKED,) if self.branch == POSITIVE else (ASKED, self.source)

    def words(self, ctx: Context, state: State) -> str | None:
        if self.branch == POSITIVE or state[ASKED] is None:
            asked: str | None = state[ASKED]
            return asked
        return super().words(ctx, state)

    def told(self, tokens: int, whole: int, limit: int) -> TextRead:
        told = super().told(tokens, whole, limit)
        return TextRead(f"{told.source} of the picture", told.encoder, told.tokens, told.left_out, told.why)


@dataclass(frozen=True)
class DenoiseAsked(Denoise):
    """The same, where something was asked for."""

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*super().reads, ASKED)

    def skip(self, ctx: Context, state: State) -> bool:
        if state[ASKED] is None:
            state["latents"] = None
        return state[ASKED] is None


def like(stage: Any, kind: type[Kind]) -> Kind:
    """A stage of that `kind` with all choices of `stage`, whose kind it refines."""
    return kind(**{each.name: getattr(stage, each.name) for each in fields(stage) if each.init})
