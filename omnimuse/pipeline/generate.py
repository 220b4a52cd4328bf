"""The stages of a model that writes: a prompt or a conversation is read, and one token follows the other.

The loop is one like denoising: a state's next step reads up to `CHUNK` tokens that its memory does not have yet, which
is a piece of the prompt or the token that was written last; rows of both kinds share forwards. So a long prompt is read
in pieces, between which others go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from omnimuse.ar.kv import Decoder, Reading
from omnimuse.ar.sampling import Sampling, next_token
from omnimuse.ar.spelling import Spelling
from omnimuse.core.errors import RequestError
from omnimuse.core.output import TextRead, TextWritten
from omnimuse.core.params import GenerationParams
from omnimuse.core.request import Request
from omnimuse.core.spec import OPTIONS
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

CHUNK = 256
"""Tokens of a prompt that are read in one step."""
ROOM = 64
"""Tokens that a memory has room for beyond the prompt, at first."""


@dataclass(frozen=True)
class ReadTalk(Stage):
    """The conversation by the checkpoint's chat template, or else the prompt as it stands -> its tokens (a tuple)."""

    name: str = "read"
    reads: tuple[str, ...] = ("prompt", "messages")
    writes: tuple[str, ...] = ("prompt_ids",)
    uses: tuple[str, ...] = ("tokenizer",)

    def run(self, ctx: Context, states: list[State]) -> None:  # type: ignore[override]
        tokenizer = ctx.components["tokenizer"]
        for state in states:
            messages, text = state["messages"], state["prompt"]
            if messages:
                said = [asdict(message) for message in messages]
                text = tokenizer.apply_chat_template(said, add_generation_prompt=True)
            tokens = tokenizer(text, add_special_tokens=not messages).input_ids[0].tolist() if text else []
            most = ctx.limits.max_sequence_length
            if not tokens:
                raise RequestError("the prompt is empty, and there is nothing to go on from; write something", "prompt")
            if len(tokens) >= most:
                raise RequestError(
                    f"the prompt has {len(tokens)} tokens; this model reads and writes {most} in all: say less",
                    "prompt",
                )
            state["prompt_ids"] = tuple(map(int, tokens))
            state.notes[self.name] = TextRead("prompt", "the model", len(tokens))


@dataclass(frozen=True)
class Generate(Loop):
    """From `prompt_ids` to `reply`, a text, with the network `network`; `kv` is what it remembers of both."""

    grows: ClassVar[bool] = True
    network: str = "model"
    name: str = "generate"
    reads: tuple[str, ...] = ("prompt_ids",)
    writes: tuple[str, ...] = ("kv", "reply")

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network, "tokenizer")

    def begin(self, ctx: Context, state: State) -> list[Step]:
        prompt, chosen = state["prompt_ids"], state.request.extra
        assert isinstance(chosen, GenerationParams)
        told = ctx.configs[OPTIONS]
        left = ctx.limits.max_sequence_length - len(prompt)
        most = told.get("max_new_tokens") if chosen.max_tokens is None else chosen.max_tokens
        state.working["most"] = left if not isinstance(most, int) else min(most, left)
        state.working["how"] = Sampling.of(chosen, told)
        state.working["spelling"] = Spelling(ctx.components["tokenizer"].decode, chosen.stop)
        state.working["tokens"], state.working["remembered"] = list(prompt), 0
        network = ctx.components.wherever(self.network)
        assert isinstance(network, Decoder)
        state["kv"] = network.memory(len(prompt) + min(ROOM, state.working["most"]), ctx.device)
        return [Step(index, network=self.network) for index in range(-(-len(prompt) // CHUNK))]

    def tokens(self, ctx: Context, request: Request) -> int:
        return 1

    def cost(self, ctx: Context, state: State) -> int:
        return min(CHUNK, len(state.working["tokens"]) - state.working["remembered"])

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        start, tokens = state.working["remembered"], state.working["tokens"]
        piece = tokens[start : start + CHUNK]
        if start + len(piece) > state["kv"].room:
            state["kv"] = state["kv"].with_room(2 * state["kv"].room)
        return [
            Row(
                state=state,
                branch="positive",
                network=self.network,
                inputs=Reading(torch.tensor(piece, device=ctx.device), start, state["kv"]),
                tokens=len(piece),
                shape=(),
                memory=Memory(),
            )
        ]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        working, prompt = state.working, len(state["prompt_ids"])
        tokens, spelling = working["tokens"], working["spelling"]
        working["remembered"] += self.cost(ctx, state)
        if working["remembered"] < len(tokens):
            return  # more of the prompt is to be read
        logits, written = predictions["positive"].cpu(), len(tokens) - prompt
        tokens.append(next_token(logits, tokens, written, working["how"], state.generator))
        ended = tokens[-1] in working["how"].ends
        self._tell(state, "" if ended else spelling.add(tokens[-1]))
        if not ended and not spelling.stopped and written + 1 < working["most"]:
            state.plan.append(Step(step.index + 1, network=self.network))
            return
        stopped = ended or spelling.stopped
        state.notes[self.name] = TextWritten(state.output, tuple(tokens[prompt:]), "stop" if stopped else "length")

    def finish(self, ctx: Context, state: State) -> None:
        spelling = state.working["spelling"]
        self._tell(state, spelling.end())
        state["reply"] = spelling.text

    def _tell(self, state: State, piece: str) -> None:
        told = state.working.setdefault("told", 0)
        if piece:
            state.grow("text", told, piece)
            state.working["told"] = told + len(piece)
