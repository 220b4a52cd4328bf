"""The stock stage of speech: codes of frames become a waveform while they are said, exactly what the whole would be.

It is a track of its own behind one that streams codes. For codecs with the contract of `components/speech_codec.py`.
Letters: Q codebooks, T frames, n samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from omnimuse.ar.kv import numbers
from omnimuse.components.speech_codec import Codec, Past
from omnimuse.pipeline.arrival import Arrival
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream

FIRST, PIECE = 4, 25
"""Frames that are decoded at once: at first few, so that a sound begins soon, then more."""


@dataclass
class Decoding:
    """What decoding remembers of one state: what the codec saw last, the pieces of the sound, [1, n] each, and how many
    samples these are.
    """

    past: Past = field(default_factory=Past)
    pieces: list[Arrival] = field(default_factory=list)
    samples: int = 0

    @property
    def piece(self) -> int:
        """Frames of the next piece, if there are as many."""
        return PIECE if self.samples else FIRST


@dataclass(frozen=True)
class DecodeSpeech(Loop):
    """From `codes`, a stream of frames of Q codes, to `sound`: float32 [1, n]; for output "latent" int64 [Q, T].

    Frames that are `unheard` come first, and are no part of either.
    """

    grows: ClassVar[bool] = True
    codec: str
    name: str = "decode"
    reads: tuple[str, ...] = ("codes",)
    writes: tuple[str, ...] = ("sound",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.codec,)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state.working["decode"] = Decoding()
        return [Step(0)]

    def ready(self, ctx: Context, state: State) -> bool:
        codes: Stream = state["codes"]
        if codes.closed or state.request.params.output_type == "latent":
            return codes.closed
        decoding: Decoding = state.working.get("decode") or Decoding()
        return len(codes.items) >= decoding.past.frames + decoding.piece

    def cost(self, ctx: Context, state: State) -> int:
        """A piece counts as many tokens as it has frames."""
        return PIECE

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        decoding, codes = state.working["decode"], state["codes"].items
        if state.request.params.output_type == "latent":
            return  # they are handed over as they are
        at = decoding.past.frames
        if early := [frame for frame in codes[at : at + PIECE] if frame[0] < 0]:
            self._codec(ctx)(_frames(ctx, [unheard(frame) for frame in early]), decoding.past)
            state.plan.append(Step(step.index + 1))
            return
        end = min(at + decoding.piece, len(codes))
        if end > at:
            piece = self._codec(ctx)(_frames(ctx, codes[at:end]), decoding.past)[None]  # [1, n]
            decoding.pieces.append(ctx.send(piece))
            state.grow("audio", decoding.samples, piece)
            decoding.samples += piece.shape[1]
        if end < len(codes) or not state["codes"].closed:
            state.plan.append(Step(step.index + 1))

    def _codec(self, ctx: Context) -> Codec:
        codec = ctx.network(self.codec)
        assert isinstance(codec, Codec)
        return codec

    def finish(self, ctx: Context, state: State) -> None:
        pieces = [piece.wait() for piece in state.working["decode"].pieces]
        if state.request.params.output_type == "latent":
            state["sound"] = _frames(ctx, [frame for frame in state["codes"].items if frame[0] >= 0])
        else:
            state["sound"] = torch.cat([torch.zeros(1, 0), *pieces], dim=1)


def unheard(frame: Sequence[int]) -> tuple[int, ...]:
    """A frame of a sound that goes on, as a stream has it: its codes are below 0. Of such a frame, the codes."""
    return tuple(~code for code in frame)


def _frames(ctx: Context, codes: list[tuple[int, ...]]) -> Tensor:
    """The codes of frames as the codec takes them, int64 [Q, T]."""
    if not codes:
        return _none(ctx)
    return numbers([code for frame in codes for code in frame], ctx.device).view(len(codes), -1).T


def _none(ctx: Context) -> Tensor:
    """No frames."""
    return torch.zeros(0, 0, dtype=torch.int64, device=ctx.device)
