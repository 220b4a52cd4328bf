"""From codes to the spectrum of speech: a loop that paints it, for networks like that of `components/mel_flow.py`.

In the network that paints, a frame sees the block behind it in a layer, and so it does in every evaluation: a block
depends on as many behind it as there are evaluations. So a long answer is painted aslant, in passes: each evaluation
stays a block behind the one before it, until the last code is said. What a pass finishes is exactly what it would be of
the whole.

Letters: M bands, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from omnimuse.ar.kv import numbers
from omnimuse.components.mel_flow import FlowConfig, Flowing, MelFlow
from omnimuse.core.request import Request
from omnimuse.diffusion.three_eighths import STAGES, evaluations, moved, time_of
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.sounding import Kept
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream

POINTS, SWAY, GUIDANCE = 10, -1.0, 0.5
"""Times between which the spectrum moves, how they lean towards the beginning, and how far it goes beyond what is told
for that where nothing is, as the published code has it."""
PASS = 24
"""Blocks that a pass is begun for."""


def leant(device: torch.device) -> Tensor:
    """Times from 0 to 1, ever further apart."""
    even = torch.linspace(0, 1, POINTS, device=device)
    return even + SWAY * (torch.cos(torch.pi / 2 * even) - 1 + even)


@dataclass
class Painting:
    """What painting remembers of one state: `samples` of each evaluation where it looks, and behind the last one the
    spectrum; `slopes`, how they flow there; whether all frames are there that will be.
    """

    width: int
    back: int
    ahead: int
    times: Tensor
    samples: list[Kept]
    slopes: list[Kept]
    whole: bool = False

    @staticmethod
    def of(config: FlowConfig, device: torch.device) -> Painting:
        """Nothing is painted yet."""
        times, none, width = leant(device), torch.zeros(0, config.mel_dim, device=device), config.block_size
        back, ahead = (width * len(layers) for layers in (config.look_backward_layers, config.look_ahead_layers))
        slopes = [Kept(none) for _ in range(evaluations(times))]
        return Painting(width, back, ahead, times, [Kept(none) for _ in (*slopes, none)], slopes)

    @property
    def count(self) -> int:
        """Evaluations of a pass."""
        return len(self.slopes)

    def span(self, index: int) -> tuple[int, int, int, int]:
        """Of evaluation `index` the frames that it is given, and those of them that it is made for now: where these
        begin and end.
        """
        end, done = self.samples[index].end, self.slopes[index].end
        made = end if self.whole else max(done, end - self.ahead)
        first = max(0, done - self.back) // self.width * self.width
        return first, min(made + self.ahead, end), done, made

    def take(self, index: int, slope: Tensor) -> None:
        """What evaluation `index` has found of all the frames that it was given."""
        first, _, done, made = self.span(index)
        self.slopes[index].add(slope[done - first : made - first])
        begun = index // STAGES * STAGES
        slopes = [each.between(done, made) for each in self.slopes[begun : index + 1]]
        base = self.samples[begun].between(done, made)
        self.samples[index + 1].add(moved(self.times, index, base, slopes))
        if index % STAGES == STAGES - 1:
            for each in range(begun, index + 1):
                self.samples[each].forget(min(made, self.slopes[each].end - self.back - self.width))
                self.slopes[each].forget(made)


def until(config: FlowConfig, known: int) -> int:
    """Up to which frame a pass goes that begins when so many are `known`, if there are as many: the first has to be
    for as many blocks more as the last evaluation stays behind the first.
    """
    behind = 0 if known else STAGES * (POINTS - 1) * len(config.look_ahead_layers)
    return known + (behind + PASS) * config.block_size


Voice = tuple[Tensor, Tensor]
"""What tells a voice, float32 [V], and the bands of something that it said, float32 [M, *]."""


@dataclass(frozen=True)
class Paint(Loop):
    """From `codes`, a stream of frames of one code, to `mel`, a stream of pieces of the spectrum, float32 [T, M].

    In which `voice`, a request says.
    """

    voice: Callable[[Context, Request], Voice]
    network: str = "flow"
    name: str = "paint"
    reads: tuple[str, ...] = ("codes",)
    writes: tuple[str, ...] = ("mel",)
    streams: tuple[str, ...] = ("mel",)
    grows: ClassVar[bool] = True

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network,)

    def ready(self, ctx: Context, state: State) -> bool:
        codes, painting = state["codes"], state.working.get("painting")
        if codes.closed or (painting is not None and state.plan[state.position].index % painting.count):
            return True
        network = ctx.components.wherever(self.network)
        assert isinstance(network, MelFlow)
        c = network.config
        return len(codes.items) * c.codes.repeats > until(c, 0 if painting is None else painting.samples[0].end)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state["mel"] = Stream()
        if not state["codes"].items:  # it was closed before anything was said
            return [Step(0)]
        network = ctx.network(self.network)
        assert isinstance(network, MelFlow)
        # Of a generator of its own, so that it does not depend on how much was drawn while it was said.
        state.working["chance"] = torch.Generator("cpu").manual_seed(state.request.seed(state.output))
        state.working["painting"] = painting = Painting.of(network.config, ctx.device)
        return [Step(index, network=self.network) for index in range(painting.count)]

    def cost(self, ctx: Context, state: State) -> int:
        painting, index = state.working.get("painting"), state.plan[state.position].index
        if painting is None or not index % painting.count:
            return 1
        first, end, _, _ = painting.span(index % painting.count)
        return max(1, 2 * (end - first))

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        painting: Painting | None = state.working.get("painting")
        if painting is None:
            return []
        index = step.index % painting.count
        if not index:
            self._hear(ctx, state, painting)
        first, end, done, made = painting.span(index)
        if done == made:
            return []
        sample, time = painting.samples[index].between(first, end), time_of(painting.times, index)
        return [
            Row(state, branch, self.network, Flowing(sample, told[first:end], time), end - first, (), Memory())
            for branch, told in zip(("positive", "negative"), state.working["told"], strict=True)
        ]

    def _hear(self, ctx: Context, state: State, painting: Painting) -> None:
        """Begin a pass, with the codes of as many frames as it is for. How many depends on nothing but how many there
        are in all.
        """
        network, codes, known = ctx.network(self.network), state["codes"], painting.samples[0]
        assert isinstance(network, MelFlow)
        c, target = network.config, until(network.config, known.end)
        frames = min(len(codes.items) * c.codes.repeats, target)
        painting.whole = codes.closed and frames == len(codes.items) * c.codes.repeats
        said = numbers([code for (code,) in codes.items[: frames // c.codes.repeats]], ctx.device)
        state.working["told"] = network.told(said, *self.voice(ctx, state.request))
        noise = torch.randn(frames - known.end, c.mel_dim, generator=state.working["chance"])
        known.add(noise.to(ctx.device))

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        painting: Painting | None = state.working.get("painting")
        if painting is None:
            return
        index = step.index % painting.count
        if predictions:
            told, untold = predictions["positive"], predictions["negative"]
            painting.take(index, told + (told - untold) * GUIDANCE)
        if index < painting.count - 1:
            return
        done = painting.samples[-1]
        if len(done.frames):
            state["mel"].put(done.frames)
            done.forget(done.end)
        if not painting.whole:
            state.plan += [Step(step.index + 1 + more, network=self.network) for more in range(painting.count)]

    def finish(self, ctx: Context, state: State) -> None:
        state["mel"].close()
