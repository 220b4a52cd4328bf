"""The stages of a model that writes: a prompt or a conversation is read, and one token follows the other.

The loop is one like denoising: a state's next step reads up to `CHUNK` tokens that its memory does not have yet, which
is a piece of the prompt or the token that was written last; rows of both kinds share forwards. So a long prompt is read
in pieces, between which others go on. What was read of a whole piece is remembered by all tokens up to its end, and
prompts that begin alike do not read it again: the rest is read in the same pieces either way, so nothing changes.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from omnimuse.ar.elsewhere import Writer
from omnimuse.ar.kv import Decoder, Reading
from omnimuse.ar.remembering import NONE
from omnimuse.ar.sampling import Sampling, next_token, no_numbers
from omnimuse.ar.spelling import Spelling
from omnimuse.core.errors import RequestError
from omnimuse.core.messages import Message
from omnimuse.core.output import TextRead, TextWritten
from omnimuse.core.params import GenerationParams
from omnimuse.core.request import Request
from omnimuse.core.spec import OPTIONS
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

CHUNK = 128
"""Tokens of a prompt that are read in one step."""
TEMPLATE = 64
"""Tokens that a chat template may add to a message."""
ROOM = 64
"""Tokens that a memory has room for beyond the prompt, at first."""
UNSEEN = "no times of the blocks of {} are told: vLLM computes them in a process of its own"


@dataclass(frozen=True)
class ReadTalk(Stage):
    """The conversation by the checkpoint's chat template, or the prompt as it stands, or tokens by their numbers -> its
    tokens (a tuple).
    """

    tokenizer: str = "tokenizer"
    name: str = "read"
    reads: tuple[str, ...] = ("prompt", "messages", "tokens")
    writes: tuple[str, ...] = ("prompt_ids",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.tokenizer,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        tokenizer = ctx.components[self.tokenizer]
        for state in states:
            tokens = tokens_read(tokenizer, state.request, state["messages"])
            most = ctx.limits.max_sequence_length
            if not tokens:
                raise RequestError("the prompt is empty, and there is nothing to go on from; write something", "prompt")
            if len(tokens) >= most:
                raise RequestError(
                    f"the prompt has {len(tokens)} tokens; this model reads and writes {most} in all: say less",
                    "prompt",
                )
            state["prompt_ids"] = tuple(tokens)
            state.notes[self.name] = TextRead("prompt", "the model", len(tokens))


def tokens_read(tokenizer: Any, request: Request, messages: Sequence[Message]) -> list[int]:
    """The tokens of these messages of a request, with what may be called and what the answer has begun with; without
    any, those of its prompt or the ones that it gives. RequestError for a number that stands for none.
    """
    if (highest := max(request.tokens, default=0)) >= tokenizer.size:
        raise RequestError(f"{highest} stands for no token; this model has 0 to {tokenizer.size - 1}", "tokens")
    prompt = request.prompt
    if messages:
        said, tools = [each.said for each in messages], [tool.said for tool in request.tools]
        prompt = tokenizer.apply_chat_template(said, tools=tools or None, add_generation_prompt=True) + request.begun
    if request.tokens or not prompt:
        return list(request.tokens)
    numbers: list[int] = tokenizer.numbers(prompt, special=not messages)
    return numbers


@dataclass(frozen=True)
class Generate(Loop):
    """From `prompt_ids` to `reply`, a text, with the network `network`; `kv` is what it remembers of both.

    One with `only_tokens` wants nothing else of its network, and takes them from a `Writer` that stands in its place.
    """

    grows: ClassVar[bool] = True
    only_tokens: ClassVar[bool] = True
    network: str = "model"
    tokenizer: str = "tokenizer"
    name: str = "generate"
    reads: tuple[str, ...] = ("prompt_ids",)
    writes: tuple[str, ...] = ("kv", "reply")
    computed = True

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.network, self.tokenizer)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        prompt, chosen = state["prompt_ids"], state.request.extra
        assert isinstance(chosen, GenerationParams)
        told = self.told(ctx)
        left = ctx.limits.max_sequence_length - len(prompt)
        most = told.get("max_new_tokens") if chosen.max_tokens is None else chosen.max_tokens
        state.working["most"] = left if not isinstance(most, int) else min(most, left)
        state.working["how"] = Sampling.of(chosen, told)
        state.working["generator"] = self.generator(state)
        decode, heard = ctx.components[self.tokenizer].decode, state.request.chunks
        state.working["spelling"] = Spelling(decode, chosen.stop, heard=heard)
        state.working["tokens"] = list(prompt)
        if (writer := self._writer(ctx)) is not None:
            how, seed = state.working["how"], state.request.seed(state.output)
            state["kv"], state.working["reused"] = None, 0
            if state.request.blocks:
                state.said.append(UNSEEN.format(self.network))
            state.working["writing"] = writer.begin(prompt, state.working["most"], how, seed)
            return [Step(0)]
        self.remember(ctx, state, len(prompt) + min(ROOM, state.working["most"]))
        state.working["remembered"] = state.working["reused"] = self._recall(ctx, state, prompt)
        left_over = len(prompt) - state.working["reused"]
        return [Step(index, network=self.network) for index in range(-(-left_over // CHUNK))]

    def remember(self, ctx: Context, state: State, tokens: int) -> None:
        """Make what remembers, with room for so many `tokens` at first."""
        state["kv"] = self._decoder(ctx).memory(tokens, ctx.device)

    def tokens(self, ctx: Context, request: Request) -> int:
        return 1

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        chosen, longest = request.extra, ctx.limits.max_sequence_length
        assert isinstance(chosen, GenerationParams)
        if self._writer(ctx) is not None:
            return 0, 0
        told = self.told(ctx).get("max_new_tokens")
        most = chosen.max_tokens or (told if isinstance(told, int) else longest)
        # No token is less than a byte; of the template's own words nothing is known here.
        prompt = len(request.tokens) + sum(len(text.encode()) + TEMPLATE for text in request.texts or (request.prompt,))
        prompt = longest if any(request.counts.values()) else prompt  # what is shown takes nobody knows how many
        tokens = 1 + (chosen.max_tokens or chosen.min_tokens), prompt + most
        least, most = (min(count, longest) * self._decoder(ctx).most.token_bytes for count in tokens)
        return least, most

    def ready(self, ctx: Context, state: State) -> bool:
        writing = state.working.get("writing")
        return writing is None or writing.ready

    def cost(self, ctx: Context, state: State) -> int:
        if "writing" in state.working:
            return 1
        return min(CHUNK, len(state.working["tokens"]) - state.working["remembered"])

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        if "writing" in state.working:
            return []
        start, tokens = state.working["remembered"], state.working["tokens"]
        piece = tokens[start : start + CHUNK]
        state["kv"].reserve(start + len(piece) + state.stride - 1)
        return [
            Row(
                state=state,
                branch="positive",
                network=self.network,
                inputs=self.reading(state, piece, start),
                tokens=len(piece),
                shape=(),
                memory=Memory(),
            )
        ]

    def reading(self, state: State, ids: Sequence[int], start: int) -> Reading:
        """The row that reads the tokens `ids` behind `start` others."""
        return Reading(ids, start, state["kv"], forbidden=self.forbidden(state))

    def forbidden(self, state: State) -> tuple[Sequence[int], ...]:
        """Where nothing is wanted but the likeliest tokens, those that each must not be."""
        working = state.working
        written, how = len(working["tokens"]) - len(state["prompt_ids"]), working["how"]
        return tuple(how.forbidden(written + number) for number in range(state.stride)) if how.greedy else ()

    def ahead(self, ctx: Context, state: State, most: int) -> int:
        working = state.working
        if not working["how"].greedy or "writing" in working or self.cost(ctx, state) > 1:
            return 1
        return min(most, working["most"] + len(state["prompt_ids"]) - len(working["tokens"]))

    def generator(self, state: State) -> torch.Generator:
        """What tokens are drawn with, where they are drawn."""
        return state.generator

    def shown(self, state: State) -> Hashable:
        """What is read besides the tokens of the prompt: where it is equal, too, a beginning need not be read again.

        None: it is read in any case.
        """
        return ()

    def told(self, ctx: Context) -> Mapping[str, Any]:
        """What the checkpoint says of how it writes."""
        return ctx.configs[OPTIONS]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        working = state.working
        tokens = working["tokens"]
        if "writing" in working:
            writing = working["writing"]
            come = writing.take()
            if not all(self._add(state, token) for token in come):
                return
            if writing.over:
                self._note(state, "stop" if writing.reason == "stop" else "length")
            else:
                state.plan.append(Step(step.index + len(come)))
            return
        before = working["remembered"]
        working["remembered"] = end = before + self.cost(ctx, state)
        if end == before + CHUNK:
            self._remember(ctx, state, before)
        if end < len(tokens):
            return  # more of the prompt is to be read
        found = predictions["positive"]
        if found.is_floating_point():
            written = len(tokens) - len(state["prompt_ids"])
            come = [next_token(found, tokens, written, working["how"], working["generator"])]
        else:
            come = found.tolist()
        for number, token in enumerate(come, 1):
            if token == NONE:
                raise no_numbers()
            if not self._add(state, token):
                state.stride = number
                return
            state.plan.append(Step(step.index + number, network=self.network))
        working["remembered"] = end + len(come) - 1

    def _add(self, state: State, token: int) -> bool:
        """One more token was written; whether another is to come."""
        working = state.working
        tokens, spelling, prompt = working["tokens"], working["spelling"], len(state["prompt_ids"])
        tokens.append(token)
        ended = token in working["how"].ends
        if not ended and (piece := spelling.add(token)):
            self._tell(state, piece)
        if not ended and not spelling.stopped and len(tokens) - prompt < working["most"]:
            return True
        self._note(state, "stop" if ended or spelling.stopped else "length")
        return False

    def _note(self, state: State, reason: Literal["stop", "length"]) -> None:
        """Nothing more is written, for that reason."""
        working, prompt = state.working, len(state["prompt_ids"])
        written = tuple(working["tokens"][prompt:])
        state.notes[self.name] = TextWritten(state.output, written, reason, working["reused"])

    def _decoder(self, ctx: Context) -> Decoder:
        """The network, wherever its weights are."""
        network = ctx.components.wherever(self.network)
        assert isinstance(network, Decoder)
        return network

    def _writer(self, ctx: Context) -> Writer | None:
        """Who writes in the place of the network."""
        there = ctx.components.wherever(self.network)
        return there if isinstance(there, Writer) else None

    def finish(self, ctx: Context, state: State) -> None:
        spelling = state.working["spelling"]
        self._tell(state, spelling.end())
        state["reply"] = spelling.text

    def _recall(self, ctx: Context, state: State, prompt: Sequence[int]) -> int:
        """Put what is remembered of the beginning of `prompt` into `kv`; how many tokens. The last is read anyway."""
        start, kv = 0, state["kv"]
        if self.shown(state) is None:
            return start
        for end in range(CHUNK, len(prompt), CHUNK):
            known = ctx.memo.get(self._key(ctx, state, prompt[:end]))
            if known is None:
                break
            kv.data[:, :, :, start:end] = known[0]
            start = end
        return start

    def _remember(self, ctx: Context, state: State, start: int) -> None:
        """Keep the piece that was read from `start` on, if all of it is of the prompt."""
        prompt, end = state["prompt_ids"], start + CHUNK
        if end <= len(prompt) and self.shown(state) is not None:
            piece = state["kv"].data[:, :, :, start:end].clone()
            ctx.memo.put(self._key(ctx, state, prompt[:end]), (piece,), self._decoder(ctx).most.token_bytes * CHUNK)

    def _key(self, ctx: Context, state: State, tokens: Sequence[int]) -> Hashable:
        """What promises equal memories of the last piece of `tokens`."""
        read = sha256(array("q", tokens).tobytes()).digest()
        return (type(self), self.network, self.shown(state), state.adapters((self.network,)), read)

    def _tell(self, state: State, piece: str) -> None:
        working = state.working
        told, seen = working.setdefault("told", (0, len(state["prompt_ids"])))
        if piece:
            state.grow("text", told, piece, tuple(working["tokens"][seen:]))
            working["told"] = told + len(piece), len(working["tokens"])
