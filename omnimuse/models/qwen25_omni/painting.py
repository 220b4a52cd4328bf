"""From codes to sound in Qwen2.5-Omni: a loop that paints the spectrum, and one that makes samples of it.

In the network that paints, a frame sees one block ahead in a layer, and so it does in every evaluation: a frame depends
on as many blocks behind it as there are evaluations. So painting begins when all codes are there. What comes after is
exact in pieces: samples are handed over while more are made.

Letters: M bands, T frames, n samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from omnimuse.diffusion.three_eighths import ThreeEighths
from omnimuse.layers.stack import Memory
from omnimuse.models.qwen25_omni.answering import voice_of
from omnimuse.models.qwen25_omni.flow import Flowing, MelFlow
from omnimuse.models.qwen25_omni.vocoder import Vocoder
from omnimuse.pipeline.answering import aloud
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State

POINTS, SWAY, GUIDANCE = 10, -1.0, 0.5
"""Times between which the spectrum moves, how they lean towards the beginning, and how far it goes beyond what is told
for that where nothing is, as the published code has it."""
PIECE = 200
"""Frames of which samples are made at once."""


def times() -> tuple[float, ...]:
    """From 0 to 1, ever further apart."""
    even = torch.linspace(0, 1, POINTS)
    leant = even + SWAY * (torch.cos(torch.pi / 2 * even) - 1 + even)
    return tuple(leant.tolist())


@dataclass(frozen=True)
class Paint(Loop):
    """From `codes`, a stream of frames of one code, to `mel`, float32 [M, T]; None where nothing was said."""

    network: str = "flow"
    name: str = "paint"
    reads: tuple[str, ...] = ("codes",)
    writes: tuple[str, ...] = ("mel",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network,)

    def ready(self, ctx: Context, state: State) -> bool:
        return bool(state["codes"].closed)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        codes, state["mel"] = [code for (code,) in state["codes"].items], None
        if not codes:
            return [Step(0)]
        network, voice = ctx.network(self.network), voice_of(ctx, state.request)
        assert isinstance(network, MelFlow)
        own, mel = (torch.tensor(voice[name], dtype=torch.float32, device=ctx.device) for name in ("cond", "ref_mel"))
        said = torch.tensor(codes, device=ctx.device)
        state.working["told"], state.working["untold"] = network.told(said, own.flatten(), mel[0].T)
        frames = len(codes) * network.config.codes.repeats
        # Of a generator of its own, so that it does not depend on how much was drawn while it was said.
        chance = torch.Generator("cpu").manual_seed(state.request.seed(state.output))
        noise = torch.randn(frames, network.config.mel_dim, generator=chance).to(ctx.device)
        state.working["solver"] = solver = ThreeEighths.of(times(), noise)
        return [Step(index, network=self.network) for index in range(solver.evaluations)]

    def cost(self, ctx: Context, state: State) -> int:
        return 2 * len(state.working["told"]) if "told" in state.working else 1

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        if "solver" not in state.working:
            return []
        at, time = state.working["solver"].sample, state.working["solver"].time(step.index)
        beside = {"positive": state.working["told"], "negative": state.working["untold"]}
        return [
            Row(state, branch, self.network, Flowing(at, told, time), len(at), tuple(at.shape), Memory())
            for branch, told in beside.items()
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if "solver" in state.working:
            told, untold = predictions["positive"], predictions["negative"]
            state.working["solver"].step(step.index, told + (told - untold) * GUIDANCE)

    def finish(self, ctx: Context, state: State) -> None:
        if "solver" in state.working:
            state["mel"] = state.working["solver"].sample.T.contiguous()


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
        state.working["pieces"] = []
        frames = 0 if state["mel"] is None else state["mel"].shape[1]
        return [Step(index) for index in range(max(1, -(-frames // PIECE)))]

    def cost(self, ctx: Context, state: State) -> int:
        return PIECE

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if (mel := state["mel"]) is None:
            return
        vocoder, start = ctx.network(self.vocoder), step.index * PIECE
        assert isinstance(vocoder, Vocoder)
        piece = vocoder(mel, start, min(start + PIECE, mel.shape[1]))[None]  # [1, n]
        state.working["pieces"].append(ctx.send(piece))
        state.grow("audio", start * vocoder.hop, piece)

    def finish(self, ctx: Context, state: State) -> None:
        pieces = [piece.wait() for piece in state.working["pieces"]]
        if not aloud(state):
            state["sound"] = None
        else:
            state["sound"] = torch.cat([torch.zeros(1, 0), *pieces], dim=1)
