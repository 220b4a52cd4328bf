"""The writing loop of Qwen3-Omni: as any other, with what is shown among the tokens, and for whom it is to be spoken.

The thinker hands over what it was told, as soon as it has read it, and then what stands for every token.

Letters: M tokens that stand for something shown, E width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.components.sights import Seeing, line
from omnimuse.core.errors import RequestError
from omnimuse.models.qwen3_omni.speaking import OPENING, Overheard
from omnimuse.pipeline.answering import Think, aloud
from omnimuse.pipeline.conversing import Brief, Marks, Shown, placed
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class ThinkAloud(Think):
    """The same; the talker hears what tokens embed, and what was made of what is shown."""

    def told(self, ctx: Context) -> Mapping[str, Any]:
        return {"eos_token_id": ctx.configs["model"].get("im_end_token_id"), **super().told(ctx)}

    def begin(self, ctx: Context, state: State) -> list[Step]:
        brief = state["brief"]
        state.working["heard"] = None
        if aloud(state) and last_opening(state["prompt_ids"], ctx.configs["model"]) is None:
            why = "a prompt that goes on is not spoken; give messages, which are answered"
            raise RequestError(f'modalities=["text", "audio"] cannot be: {why}', "extra.modalities")
        if aloud(state) and brief is not None:
            state.working["heard"] = torch.zeros_like(brief.seen.shown)
        return super().begin(ctx, state)

    def reading(self, state: State, ids: Sequence[int], start: int) -> Reading:
        row, heard = super().reading(state, ids, start), state.working["heard"]
        if heard is None or not isinstance(row, Seeing) or row.at is None:
            return row
        return replace(row, heard=heard[state["brief"].rows(start, start + len(ids))])

    def shown(self, state: State) -> Hashable:  # of what is shown the talker wants more than is remembered
        return None if aloud(state) and any(state.request.counts.values()) else super().shown(state)

    def overheard(self, ctx: Context, state: State) -> Overheard:
        config: Mapping[str, Any] = ctx.configs["model"]
        ids, brief, shown = state["prompt_ids"], state["brief"], list[Shown]()
        embedded, at = self.embedded(ctx, ids), torch.zeros(len(ids), dtype=torch.bool, device=ctx.device)
        chosen = torch.tensor(users(ids, config), device=ctx.device, dtype=torch.bool)
        if brief is not None:
            at, shown = brief.at, shown_to(brief, chosen)
            embedded = embedded.index_copy(0, at.nonzero()[:, 0], state.working["heard"].to(embedded.dtype))
        spoken = [token for token, own in zip(ids, chosen.tolist(), strict=True) if own]
        known = Marks.of(config, ctx.components[self.tokenizer], chunked=False)
        places = placed(spoken, shown, known) if spoken else line(0, 0)
        begins = last_opening(ids, config)
        assert begins is not None
        marks = [int(config[f"tts_{name}_token_id"]) for name in ("bos", "eos", "pad")]
        opening, told = self.embedded(ctx, [*ids[begins : begins + OPENING], *marks]).split([OPENING, len(marks)])
        return Overheard(embedded[chosen], at[chosen], places.to(ctx.device), opening, told)

    def word(self, ctx: Context, state: State, token: int) -> Tensor:
        return self.embedded(ctx, [token])[0]


def shown_to(brief: Brief, chosen: Tensor) -> list[Shown]:
    """What is shown in messages of the user, whose tokens are `chosen`, bool [S]."""
    own = chosen[brief.at].cpu()[torch.tensor([len(each.seen.shown) for each in brief.shown]).cumsum(0) - 1]
    return [each for each, theirs in zip(brief.shown, own.tolist(), strict=True) if theirs]


def users(ids: Sequence[int], config: Mapping[str, Any]) -> list[bool]:
    """Which tokens of a conversation are of messages of the user, marks included."""
    start, user = config["im_start_token_id"], config["user_token_id"]
    found, own = list[bool](), len(ids) > 1 and ids[1] == user
    for at, token in enumerate(ids):
        if token == start:
            own = at + 1 < len(ids) and ids[at + 1] == user
        found.append(own)
    return found


def last_opening(ids: Sequence[int], config: Mapping[str, Any]) -> int | None:
    """Where the answer begins that is to be written; None where none was opened."""
    pair = config["im_start_token_id"], config["assistant_token_id"]
    opened = [at for at in range(len(ids) - OPENING + 1) if tuple(ids[at : at + 2]) == pair]
    return opened[-1] if opened else None
