"""BAGEL as a pipeline: look, read, write what is wanted in words, and draw by all of that.

Source: the published code (`inferencer.py`, `bagel.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from omnimuse.ar.kv import Reading
from omnimuse.components.patches import unpatchify
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.request import Request
from omnimuse.diffusion.noise import draw
from omnimuse.models.bagel.reading import Compose, End, Look, Piece, ReadTalk, ReadThought, choices, marks, words
from omnimuse.models.bagel.spec import BLIND, PATCH, SPEC
from omnimuse.models.bagel.transformer import Placed
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.derive import Derive
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.latents import cells, channels_of, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Row, Step
from omnimuse.pipeline.state import State

MOST = 1000
"""Tokens of a text, as the published code has it."""


@dataclass(frozen=True)
class Write(Generate):
    """From `kv`, behind all that was read, to `reply`, and `thought`, its tokens as words that were said; None where
    nothing is to be written, or drawn by it.
    """

    name: str = "write"
    reads: tuple[str, ...] = ("prompt_ids", "kv", "ends")
    writes: tuple[str, ...] = ("reply", "thought")
    only_tokens: ClassVar[bool] = False  # it goes on from what was read and drawn

    def told(self, ctx: Context) -> Mapping[str, Any]:
        return {"eos_token_id": marks(ctx.components["tokenizer"])[1], "top_k": 0, "max_new_tokens": MOST}

    def skip(self, ctx: Context, state: State) -> bool:
        if not choices(state.request).writes:
            state["reply"], state["thought"] = None, None
        return not choices(state.request).writes

    def remember(self, ctx: Context, state: State, tokens: int) -> None:
        """It goes on where reading ended."""

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        return super().remembers(ctx, request) if choices(request).writes else (0, 0)

    def shown(self, state: State) -> Hashable:
        return None

    def reading(self, state: State, ids: Sequence[int], start: int) -> Reading:
        end: End = state["ends"][POSITIVE]
        state["kv"].reserve(end.start + start + len(ids) + state.stride - 1)
        return Placed(ids, end.start + start, state["kv"], end.at + start, forbidden=self.forbidden(state))

    def finish(self, ctx: Context, state: State) -> None:
        super().finish(ctx, state)
        draws, tokenizer = choices(state.request).draws, ctx.components["tokenizer"]
        state["thought"] = words(ctx, tokenizer, state["reply"]) if draws else None


@dataclass(frozen=True)
class Draw(Denoise):
    """Denoising by what was read; nothing where no picture is wanted. What was read without the pictures is all, where
    there are none.
    """

    def skip(self, ctx: Context, state: State) -> bool:
        if not choices(state.request).draws:
            state["latents"] = None
        return not choices(state.request).draws

    def cost(self, ctx: Context, state: State) -> int:
        step = state.plan[state.position]
        return sum(state.working["tokens"][step.network, branch] for branch in self._apart(state, step))

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return [row for row in super().rows(ctx, state, step) if row.branch in self._apart(state, step)]

    def _apart(self, state: State, step: Step) -> list[str]:
        """The branches that have read something of their own."""
        alike = state["blind_kv"] is None and state["ends"][BLIND] == state["end"]
        return [branch for branch in step.branches if not (alike and branch == BLIND)]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        same = {BLIND: predictions[POSITIVE]} if BLIND in step.branches else {}
        super().apply(ctx, state, step, {**same, **predictions})


def noise(ctx: Context, state: State) -> tuple[Tensor | None]:
    """The first latents [c, h, w], patch by patch as the published code draws them."""
    if not choices(state.request).draws:
        return (None,)
    shape = channels_of(ctx.configs), *cells(ctx.configs, state.request)
    patches = draw((prod(shape[1:]) // PATCH**2, shape[0] * PATCH**2), state.generator, torch.float32, ctx.device)
    return (unpatchify(patches, shape, PATCH, last=True),)


def conditions(ctx: Context, state: State, network: str, branch: str) -> Placed:
    """A row of that branch without its latents: it looks at what was read, or at a beginning of it."""
    blind = branch == BLIND and state["blind_kv"] is not None
    end: End = state["end"] if branch == POSITIVE else state["ends"][branch]
    ids = torch.tensor(marks(ctx.components["tokenizer"])[2:], device=ctx.device)
    return Placed(ids, end.start, state["blind_kv"] if blind else state["kv"], end.at, fixed=False)


def inputs(ctx: Context, row: Placed, latents: Tensor, timestep: Tensor) -> Placed:
    """One row: the network counts times from 1 (noise) to 0."""
    return Placed(row.ids, row.start, row.kv, row.at, None, latents, timestep / 1000.0, fixed=False)


class BagelPipeline(Pipeline):
    """Text and pictures in; a picture out, a text, or both."""

    spec = SPEC
    records = (Piece, End)
    results = MappingProxyType({"image": "image", "text": "reply"})
    stages = (
        Look(),
        Compose(),
        ReadTalk(),
        Write(),
        ReadThought(),
        Derive(noise, "init latents", writes=("noise",)),
        Draw(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            networks=("model",),
            texts=(),
            branches=(POSITIVE, NEGATIVE),
            given=("kv", "blind_kv", "ends", "end"),
        ),
        DecodeImage(),
    )


PIPELINE = BagelPipeline
