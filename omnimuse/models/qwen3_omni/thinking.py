"""The writing loop of Qwen3-Omni: as any other, with what is shown among the tokens, and for whom it is to be spoken.

Letters: M tokens that stand for something shown, E width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.components.sights import Seeing, ShownDecoder
from omnimuse.core.errors import RequestError
from omnimuse.models.qwen3_omni.speaking import Overheard, last_opening, overheard
from omnimuse.pipeline.answering import Think, aloud
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

    def reading(self, state: State, ids: Tensor, start: int) -> Reading:
        row, heard = super().reading(state, ids, start), state.working["heard"]
        if heard is None or not isinstance(row, Seeing) or row.at is None:
            return row
        return replace(row, heard=heard[state["brief"].rows(start, start + len(ids))])

    def shown(self, state: State) -> Hashable:
        if aloud(state) and any(state.request.counts.values()):
            return None  # the talker wants more of it than is remembered
        return super().shown(state)

    def overheard(self, ctx: Context, state: State) -> Overheard:
        return overheard(ctx, state, state.working["heard"])

    def word(self, ctx: Context, state: State, token: int) -> Tensor:
        thinker = ctx.network(self.network)
        assert isinstance(thinker, ShownDecoder)
        return thinker.embed_tokens(torch.tensor(token, device=ctx.device))
