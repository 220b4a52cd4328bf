"""Stand-ins that behave: a tiny family with a network that adds, so that engine tests need no checkpoint.

The fake network's prediction depends on its own row only; the prompts in `TROUBLES` make trouble.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Request
from omnimuse.core.spec import Component, Configs, Limits, Spec
from omnimuse.engine.engine import Engine
from omnimuse.layers.network import Network
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State
from omnimuse.worker.runner import Runner


def limits(configs: Configs) -> Limits:
    return Limits(size_multiple=8, max_side=64, max_sequence_length=32)


SPEC = Spec(
    arch="FakePipeline",
    family="fake",
    tasks=("text-to-image",),
    components={"adder": Component(("Adder",)), "coder": Component(("Coder",))},
    defaults=DiffusionParams(
        num_inference_steps=3,
        guidance_scale=0.0,
        height=16,
        width=16,
        num_outputs_per_prompt=1,
        output_type="pt",
    ),
    supported=frozenset({"guidance_scale"}),
    limits=limits,
)


@dataclass(frozen=True)
class AddInputs:
    latents: Tensor  # [3, h, w]
    amount: float
    trouble: str = ""


TROUBLES = frozenset({"poisoned", "lonely", "big", "huge", "fatal", "undefined"})
"""Prompts whose second step fails: always; in company; once for want of memory; always so; with the device; gives NaN.
"""


class Adder(Network):
    """Predicts a constant per row; counts its forwards, and has the troubles that rows bring."""

    packing = "varlen"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.calls: list[int] = []
        self.activations: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.short = False

    def forward(self, rows: Sequence[AddInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        self.calls.append(len(rows))
        self._suffer({row.trouble for row in rows}, len(rows))
        return [torch.full_like(row.latents, row.amount) * self.weight for row in rows]

    def _suffer(self, troubles: set[str], rows: int) -> None:
        activations = torch.ones(8)  # what a failed forward must not keep alive
        self.activations.add(activations)
        if "poisoned" in troubles or ("lonely" in troubles and rows > 1):
            raise ValueError("poison")
        if "huge" in troubles or ("big" in troubles and not self.short):
            self.short = True
            raise torch.OutOfMemoryError("tried to allocate 9 GiB. There is more to say")
        if "fatal" in troubles:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Adder:
        return cls()

    def stacks(self) -> dict[str, BlockStack]:
        return {}


class Coder(nn.Module):
    """Counts how often a prompt is encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []


class Encode(Stage):
    name = "encode prompt"
    reads = ("prompt",)
    writes = ("embeds",)
    uses = ("coder",)

    def key(self, ctx: Context, state: State) -> str:
        return state["prompt"]

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            ctx.components["coder"].calls.append(state["prompt"])
            if state["prompt"] == "broken":
                raise ValueError("this prompt breaks the encoder")
            state["embeds"] = torch.tensor(float(len(state["prompt"])))


class Add(Loop):
    name = "add"
    reads = ("embeds",)
    writes = ("latents",)
    uses = ("adder",)

    def skip(self, ctx: Context, state: State) -> bool:
        if state.request.prompt == "undecided":
            raise ValueError("this prompt breaks what asks whether there is anything to add")
        if state.request.prompt != "nothing":
            return False
        state["latents"] = torch.zeros(3, 2, 2)
        return True

    def begin(self, ctx: Context, state: State) -> list[Step]:
        height, width = state.request.params.height, state.request.params.width
        assert height
        assert width
        state["latents"] = torch.randn(3, height // 8, width // 8, generator=state.generator)  # [3, h, w]
        steps = state.request.params.num_inference_steps or 1
        return [Step(i, float(i), 1.0, 0.0, "adder", ("positive",), 0.0) for i in range(steps)]

    def tokens(self, ctx: Context, request: Request) -> int:
        return (request.params.height or 8) * (request.params.width or 8) // 64

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        prompt = state.request.prompt
        amount = math.nan if prompt == "undefined" else float(state["embeds"])
        inputs = AddInputs(state["latents"], amount, prompt if prompt in TROUBLES and step.index == 1 else "")
        shape = tuple(state["latents"].shape)
        tokens = self.tokens(ctx, state.request)
        return [Row(state, "positive", "adder", inputs, tokens, shape, state.memory("adder", "positive"))]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        state["latents"] = state["latents"] + predictions["positive"]

    def peek(self, ctx: Context, state: State) -> Tensor:
        if state.request.prompt == "unseen":
            raise ValueError("this prompt breaks previews")
        return state["latents"].sigmoid()


class Decode(Stage):
    name = "decode"
    reads = ("latents",)
    writes = ("image",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            picture = state["latents"].sigmoid()  # [3, h, w]
            state["image"] = picture.to("meta") if state.request.prompt == "lost" else picture


class FakePipeline(Pipeline):
    spec = SPEC
    stages = (Encode(), Add(), Decode())


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def context() -> Context:
    """A live context over the fake components."""
    return Context(
        spec=SPEC,
        limits=limits({}),
        configs={},
        components=Residency({"adder": Adder(), "coder": Coder()}),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def engine(clock: Clock | None = None, config: ScheduleConfig | None = None) -> Engine:
    """A whole engine over the fake family."""
    runner = Runner(FakePipeline(context()), config or ScheduleConfig(strict_slots=True, company="always"))
    return Engine(runner, Door.of(SPEC, {}, "fake"), clock or Clock())


def ask(prompt: str = "a circle", **choices: object) -> Ask:
    """An ask with some parameters chosen; `priority`, `timeout`, `deadline`, `tenant` and `previews` go to the ask."""
    names = ("priority", "timeout", "deadline", "tenant", "previews")
    own = {name: choices.pop(name) for name in names if name in choices}
    return Ask(prompt, DiffusionParams(**choices), **own)  # type: ignore[arg-type]
