"""Stock stage: a spectrum becomes samples while it grows, in pieces that are exactly what they would be of the whole.

It is a track of its own behind one that streams a spectrum. For vocoders with the contract of `components/bigvgan.py`.

Letters: M bands, T frames, n samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from omnimuse.components.bigvgan import BigVgan
from omnimuse.pipeline.answering import aloud
from omnimuse.pipeline.arrival import Arrival
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream

PIECE = 200
"""Frames of which samples are made at once."""


@dataclass
class Kept:
    """Frames from `start` on, [T, M], of which those are forgotten that nobody asks for any more."""

    frames: Tensor
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.frames)

    def add(self, more: Tensor) -> None:
        """These come next."""
        self.frames = torch.cat([self.frames, more])

    def between(self, start: int, end: int) -> Tensor:
        """Those from `start` to `end`."""
        assert self.start <= start, "these were forgotten"
        return self.frames[start - self.start : end - self.start]

    def forget(self, end: int) -> None:
        """Nobody asks for frames before `end`."""
        keep = max(self.start, end)
        self.frames, self.start = self.frames[keep - self.start :].clone(), keep


@dataclass
class Sounding:
    """What is remembered of one state while samples are made: frames of the spectrum that are still looked at, how many
    were made of samples, and these, [1, n] each.
    """

    mel: Kept
    heard: int = 0
    made: int = 0
    pieces: list[Arrival] = field(default_factory=list)


@dataclass(frozen=True)
class Sound(Loop):
    """From `mel` to `sound`, float32 [1, n], piece by piece; None where no sound is wanted."""

    vocoder: str = "vocoder"
    name: str = "decode"
    reads: tuple[str, ...] = ("mel",)
    writes: tuple[str, ...] = ("sound",)
    grows: ClassVar[bool] = True

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.vocoder,)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        network = ctx.components.wherever(self.vocoder) if state["mel"].items else None
        bands = network.config.mel_dim if isinstance(network, BigVgan) else 0
        state.working["sounding"] = Sounding(Kept(torch.zeros(0, bands, device=ctx.device)))
        return [Step(0)]

    def ready(self, ctx: Context, state: State) -> bool:
        mel: Stream = state["mel"]
        if mel.closed:
            return True
        network, sounding = ctx.components.wherever(self.vocoder), state.working.get("sounding")
        assert isinstance(network, BigVgan)
        made = 0 if sounding is None else sounding.made
        return sum(map(len, mel.items)) >= made + PIECE + network.config.margin

    def cost(self, ctx: Context, state: State) -> int:
        return PIECE

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        sounding, mel = state.working["sounding"], state["mel"]
        for piece in mel.items[sounding.heard :]:
            sounding.mel.add(piece)
        sounding.heard, known = len(mel.items), sounding.mel.end
        end = min(sounding.made + PIECE, known)
        if end > sounding.made:
            vocoder = ctx.network(self.vocoder)
            assert isinstance(vocoder, BigVgan)
            start = sounding.mel.start
            own = vocoder(sounding.mel.frames.T, sounding.made - start, end - start)[None]  # [1, n]
            sounding.pieces.append(ctx.send(own))
            state.grow("audio", sounding.made * vocoder.hop, own)
            sounding.made = end
            sounding.mel.forget(end - vocoder.config.margin)
        if end < known or not mel.closed:
            state.plan.append(Step(step.index + 1))

    def finish(self, ctx: Context, state: State) -> None:
        pieces = [piece.wait() for piece in state.working["sounding"].pieces]
        state["sound"] = torch.cat([torch.zeros(1, 0), *pieces], dim=1) if aloud(state) else None
