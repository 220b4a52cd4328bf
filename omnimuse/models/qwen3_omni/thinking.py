"""The writing loop of Qwen3-Omni: as any other, with what is shown among the tokens, and for whom it is to be spoken.

Letters: M tokens that stand for something shown, E width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.core.errors import RequestError
from omnimuse.core.params import AnswerParams
from omnimuse.models.qwen3_omni.reading import Brief
from omnimuse.models.qwen3_omni.speaking import last_opening, overheard
from omnimuse.models.qwen3_omni.transformer import Seeing, Thinker
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream

MOST = 1024
"""Tokens of an answer, as the published code has it."""


@dataclass(frozen=True)
class Think(Generate):
    """From `prompt_ids` and `brief` to `reply`; `spoken` is a stream of what the talker hears (`speaking.py`)."""

    reads: tuple[str, ...] = ("prompt_ids", "brief")
    writes: tuple[str, ...] = ("kv", "reply", "spoken")
    streams: tuple[str, ...] = ("spoken",)

    def told(self, ctx: Context) -> Mapping[str, Any]:
        return {"eos_token_id": ctx.configs["model"].get("im_end_token_id"), **super().told(ctx)}

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state["spoken"], brief = Stream(), state["brief"]
        state.working["heard"] = None
        if not _aloud(state):
            state["spoken"].close()
        elif last_opening(state["prompt_ids"], ctx.configs["model"]) is None:
            why = "a prompt that goes on is not spoken; give messages, which are answered"
            raise RequestError(f'modalities=["text", "audio"] cannot be: {why}', "extra.modalities")
        elif brief is not None:
            state.working["heard"] = torch.zeros_like(brief.seen.shown)
        return super().begin(ctx, state)

    def reading(self, state: State, ids: Tensor, start: int) -> Reading:
        brief: Brief | None = state["brief"]
        if brief is None:
            return super().reading(state, ids, start)
        end, heard = start + len(ids), state.working["heard"]
        if end > len(brief.at):
            return Seeing(ids, start, state["kv"], brief.shift)
        rows = brief.rows(start, end)
        own = None if heard is None else heard[rows]
        return Seeing(
            ids, start, state["kv"], brief.shift, brief.turns[:, start:end], brief.at[start:end], brief.of(rows), own
        )

    def shown(self, state: State) -> Hashable:
        came = state.request
        if _aloud(state) and any(came.counts.values()):
            return None  # the talker wants more of it than is remembered
        pictures, videos, sounds = came.images, came.videos, came.sounds
        return *(each.digest for each in pictures), *(each.digest for each in videos), *(each.digest for each in sounds)

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        super().apply(ctx, state, step, predictions)
        tokens, spoken = state.working["tokens"], state["spoken"]
        written = len(tokens) - len(state["prompt_ids"])
        if not written or not _aloud(state):
            return
        if not spoken.items:
            spoken.put(overheard(ctx, state, state.working["heard"]))
        thinker = ctx.network(self.network)
        assert isinstance(thinker, Thinker)
        while len(spoken.items) < written:  # the last one is not spoken
            number = len(state["prompt_ids"]) + len(spoken.items) - 1
            spoken.put(thinker.embed_tokens(torch.tensor(tokens[number], device=ctx.device)))

    def finish(self, ctx: Context, state: State) -> None:
        super().finish(ctx, state)
        if not state["spoken"].closed:
            state["spoken"].close()


def _aloud(state: State) -> bool:
    chosen = state.request.extra
    assert isinstance(chosen, AnswerParams)
    return chosen.aloud
