"""The talking loop: the talker says the first code of a frame, the predictor its others, all in one step.

Every step reads up to `CHUNK` places of a script, or the frame that was said last. The codes of a frame are asked for
one after the other (`more`), in forwards that all states share which talk in this tick. A frame of one code needs no
predictor.

Letters: S places, D width, V codes, G codes of a frame, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from omnimuse.ar.kv import KV, Decoder, Reading, numbers
from omnimuse.ar.sampling import Sampling, next_token
from omnimuse.components.voice import CodePredictor, Voice
from omnimuse.core.output import TextWritten
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.generate import CHUNK, ROOM
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream

USUAL: Mapping[str, Any] = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
}
"""How published code has its models talk."""
UNSAID = 1024
"""The last so many codes of many a talker are marks, of which it says the end alone."""


def unsaid(codes: int, end: int) -> list[int]:
    """Which of so many codes are marks but for the `end`."""
    return [code for code in range(codes - UNSAID, codes) if code != end]


@dataclass
class Talking:
    """What the loop remembers of one state: what is read next [S, D], the places before it, and what was said.

    `codes` are those of the frame that is being said; its predictor, if there is one, remembers them in `kv`. Codes
    `before` these count as said where one is not to be said again.
    """

    ahead: Tensor
    read: int
    most: int
    first: Sampling
    others: Sampling
    kv: KV | None
    said: list[int]
    codes: list[int]
    generator: torch.Generator
    ended: Literal["", "stop", "length"] = ""
    before: tuple[int, ...] = ()

    @property
    def waits(self) -> bool:
        """Whether a frame is said, and what stands for it not made: what stands beside it may not be there yet."""
        return not len(self.ahead)


@dataclass(frozen=True)
class Talk(Loop):
    """From what a subclass has it read, to `codes`, a stream of frames of G codes; what the talker remembers is in the
    slot `memory`.
    """

    grows: ClassVar[bool] = True
    name: str = "talk"
    talker: str = "model"
    predictor: str = "predictor"
    memory: str = "kv"
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("kv", "codes")
    streams: tuple[str, ...] = ("codes",)
    computed = True

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.talker, self.predictor) if self.predictor else (self.talker,)

    def begun(self, ctx: Context, state: State, script: Tensor, talking: Callable[[KV | None], Talking]) -> list[Step]:
        """The plan to read `script` and then to talk as `talking` says, whose predictor remembers a frame in this."""
        frame = None
        if self.predictor:
            predictor = ctx.components.wherever(self.predictor)
            assert isinstance(predictor, CodePredictor)
            frame = predictor.memory(1 + len(predictor.heads), ctx.device)
        state["codes"] = Stream()
        begun = state.working["talk"] = talking(frame)
        state[self.memory] = decoder(ctx, self.talker).memory(len(script) + min(ROOM, begun.most), ctx.device)
        return [Step(index, network=self.talker) for index in range(-(-len(script) // CHUNK))]

    def cost(self, ctx: Context, state: State) -> int:
        talking: Talking = state.working["talk"]
        return 1 if talking.waits else min(CHUNK, len(talking.ahead))

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        talking: Talking = state.working["talk"]
        if talking.waits:
            frame, number = talking.codes, len(talking.said) - 1
            talking.ahead, talking.codes = (self._heard(ctx, frame) + self.beside(ctx, state, number))[None], []
        piece = talking.ahead[:CHUNK]
        if talking.read + len(piece) > state[self.memory].room:
            state[self.memory] = state[self.memory].with_room(talking.read + len(piece))
        return [_row(state, self.talker, self.reading(state, piece, talking.read))]

    def reading(self, state: State, piece: Tensor, start: int) -> Reading:
        """The row that reads a piece of what is ahead, behind `start` places."""
        return Reading(piece, start, state[self.memory])

    def beside(self, ctx: Context, state: State, frame: int) -> Tensor:
        """What stands beside frame number `frame`, [D]."""
        raise NotImplementedError

    def more(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> list[Row]:
        talking: Talking = state.working["talk"]
        if len(talking.ahead) > CHUNK:
            return []  # more of the script is to be read
        if talking.codes:
            return self._code(ctx, state, talking, predictions["positive"])
        talker = ctx.network(self.talker)
        assert isinstance(talker, Voice)
        thought = predictions["positive"]
        logits, hidden = thought.split([talker.config.vocab_size, talker.config.hidden_size])
        said = [*talking.before, *talking.said]
        code = next_token(logits, said, len(talking.said), talking.first, talking.generator)
        talking.said.append(code)
        if code in talking.first.ends or len(talking.said) == talking.most:
            talking.ended = "stop" if code in talking.first.ends else "length"
            talking.codes += [] if self.predictor or talking.ended == "stop" else [code]
            return []
        talking.codes.append(code)
        if talking.kv is None:
            return []
        heard = talker.heard(numbers([code], ctx.device))
        begun = torch.cat([hidden[None].to(ctx.device, non_blocking=True), heard])
        return [_row(state, self.predictor, Reading(begun, 0, talking.kv))]

    def _code(self, ctx: Context, state: State, talking: Talking, logits: Tensor) -> list[Row]:
        """Take one more code of the frame; what the predictor reads next, if there are others to come."""
        predictor, number = ctx.network(self.predictor), len(talking.codes)
        assert isinstance(predictor, CodePredictor)
        assert talking.kv is not None
        talking.codes.append(next_token(logits, (), number, talking.others, talking.generator))
        if number == len(predictor.heads):
            return []
        code = numbers([talking.codes[-1]], ctx.device)
        return [_row(state, self.predictor, Reading(predictor.heard(number, code), number + 1, talking.kv))]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        talking: Talking = state.working["talk"]
        talking.read += self.cost(ctx, state)
        if len(talking.ahead) > CHUNK:
            talking.ahead = talking.ahead[CHUNK:]
            return
        if talking.ended:
            if talking.codes:  # of one code, the last frame is whole
                state["codes"].put(tuple(talking.codes))
            self.tell(state, talking)
            return
        state["codes"].put(tuple(talking.codes))
        talking.ahead = talking.ahead[:0]
        state.plan.append(Step(step.index + 1, network=self.talker))

    def tell(self, state: State, talking: Talking) -> None:
        """Leave a note of what was said."""
        assert talking.ended
        state.notes[self.name] = TextWritten(state.output, tuple(talking.said), talking.ended)

    def finish(self, ctx: Context, state: State) -> None:
        state["codes"].close()

    def _heard(self, ctx: Context, codes: list[int]) -> Tensor:
        """What stands for a whole frame, [D]."""
        each, talker = numbers(codes, ctx.device), ctx.network(self.talker)
        assert isinstance(talker, Voice)
        first = talker.heard(each[:1])
        if len(codes) == 1:
            return first[0]
        predictor = ctx.network(self.predictor)
        assert isinstance(predictor, CodePredictor)
        others = [predictor.heard(number, each[number : number + 1]) for number in range(1, len(codes))]
        return torch.cat([first, *others]).sum(0)


def decoder(ctx: Context, name: str) -> Decoder:
    """The decoder `name`, which need not be on the device for that."""
    network = ctx.components.wherever(name)
    assert isinstance(network, Decoder)
    return network


def _row(state: State, network: str, inputs: Reading) -> Row:
    return Row(state, "positive", network, inputs, len(inputs.ids), (), Memory())
