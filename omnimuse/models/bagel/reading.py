"""What BAGEL reads: a talk as pieces, words and pictures, and the loop that reads them into memories.

Source: the published code (`inferencer.py`). What is drawn is led away from what would be drawn without the last text,
a beginning of the same memory, and from what would be drawn without the pictures, which has a memory of its own.

Letters: S tokens; c h w latents; p side of a patch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omnimuse.components.patches import patchify
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.messages import Message
from omnimuse.core.output import TextRead
from omnimuse.core.request import Picture, Request
from omnimuse.layers.stack import Memory
from omnimuse.models.bagel.spec import BLIND, BagelParams, fitted
from omnimuse.models.bagel.transformer import Bagel, Placed
from omnimuse.models.bagel.vision import BagelVision
from omnimuse.pipeline.encode import drawn, encode, pixels_in
from omnimuse.pipeline.generate import CHUNK, ROOM, TEMPLATE
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.scaling import scaled
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import EXACT, State

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
THINKING = (
    "You should first think about the {0} process in the mind and then {1}. \n"
    "The {0} process is enclosed within <think> </think> tags, i.e. <think> {0} process here </think> {2} here"
)
"""What the published code says to a model that is to think first."""
DRAWING = THINKING.format("planning", "generate the image", "image")
ANSWERING = THINKING.format("reasoning", "provide the user with the answer", "answer")


def choices(request: Request) -> BagelParams:
    """What was chosen."""
    assert isinstance(request.extra, BagelParams)
    return request.extra


@dataclass(frozen=True)
class Piece:
    """A piece of a talk: words `ids` [S], or the marks of a picture and what is `seen` of it, or its `latents`."""

    ids: Tensor
    seen: Tensor | None = None
    latents: Tensor | None = field(default=None, metadata=EXACT)


@dataclass(frozen=True)
class End:
    """How many tokens are remembered, and the place of the next."""

    start: int = 0
    at: int = 0


@dataclass(frozen=True)
class Look(Stage):
    """Writes `looks`: of every picture what stands for what it shows and, where something is drawn, the moments of its
    latents, [2c, h, w], else None.
    """

    name: str = "look"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("looks",)
    uses: tuple[str, ...] = ("vision", "vae")
    computed = True

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return (choices(state.request).draws, *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            draws = choices(state.request).draws
            state["looks"] = tuple(self._look(ctx, picture, draws) for picture in state["images"])

    def _look(self, ctx: Context, picture: Picture, draws: bool) -> tuple[Tensor, Tensor | None]:
        how: Mapping[str, Any] = ctx.configs["processor"]
        shown, vision = _sized(canvas(picture, None), how["vae_transform"]), ctx.network("vision")
        assert isinstance(vision, BagelVision)
        pixels = pixels_in(_sized(shown, how["vit_transform"])).to(ctx.device)
        p = int(how["vit_transform"]["image_stride"])
        rows, columns = (length // p for length in pixels.shape[1:])
        seen = vision(patchify(pixels, p, last=True), rows, columns)
        return seen, encode(ctx, pixels_in(shown)) if draws else None


def _sized(image: Image.Image, how: Mapping[str, Any]) -> Image.Image:
    return image.resize(fitted(how, image.size), Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Compose(Stage):
    """Writes `talk`, the pieces that are read, in order, and `prompt_ids`, the token with which an answer begins."""

    name: str = "compose"
    reads: tuple[str, ...] = ("prompt", "messages", "looks")
    writes: tuple[str, ...] = ("talk", "prompt_ids")
    uses: tuple[str, ...] = ("tokenizer",)
    computed = True

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        tokenizer = ctx.components["tokenizer"]
        for state in states:
            chosen, looks = choices(state.request), iter(state["looks"])
            said = [ANSWERING if not chosen.draws else DRAWING] if chosen.thinks else []
            pieces = [Piece(words(ctx, tokenizer, text)) for text in said]
            for kind, text in _ordered(state["messages"], state["prompt"], len(state["looks"])):
                if kind == "text" and any(mark in text for mark in MARKS):
                    raise RequestError(f"the text holds one of {', '.join(MARKS)}; take it out", "prompt")
                pieces += (
                    [Piece(words(ctx, tokenizer, text))] if kind == "text" else self._shown(ctx, state, *next(looks))
                )
            count = sum(len(rows.ids) for rows, _ in laid(pieces, End())[0])
            if count >= ctx.limits.max_sequence_length:
                most = f"this model reads and writes {ctx.limits.max_sequence_length} in all: say less"
                raise RequestError(f"the prompt has {count} tokens; {most}", "prompt")
            state["talk"], state["prompt_ids"] = tuple(pieces), (marks(tokenizer)[0],)
            state.notes[self.name] = TextRead("prompt", "the model", count)

    def _shown(self, ctx: Context, state: State, seen: Tensor, moments: Tensor | None) -> list[Piece]:
        """A picture: its latents, drawn by the state's own generator, if something is drawn; then what is seen."""
        ids = torch.tensor(marks(ctx.components["tokenizer"])[2:], device=ctx.device)
        found = [Piece(ids, seen=seen)]
        if moments is None:
            return found
        latents = scaled(ctx.components.wherever("vae"), ctx.configs["vae"], drawn(moments, state.generator))
        return [Piece(ids, latents=latents), *found]


def marks(tokenizer: Any) -> list[int]:
    """The ids of `MARKS`."""
    found = [tokenizer.numbers(mark, special=False) for mark in MARKS]
    if wrong := [mark for mark, ids in zip(MARKS, found, strict=True) if len(ids) != 1]:
        raise ModelError(f"the tokenizer does not know {wrong[0]} as one token; use a complete checkpoint")
    return [ids[0] for ids in found]


def words(ctx: Context, tokenizer: Any, text: str) -> Tensor:
    """The tokens of a text between the marks of its beginning and its end, [S]."""
    begin, end, *_ = marks(tokenizer)
    ids = tokenizer.numbers(text, special=False) if text else []
    return torch.tensor([begin, *ids, end], device=ctx.device)


def _ordered(messages: Sequence[Message], prompt: str, pictures: int) -> Iterator[tuple[str, str]]:
    """What is said and shown, in order: (kind, text)."""
    if not messages:
        yield from [("image", "")] * pictures
        yield "text", prompt
    for message in messages:
        yield from message.parts or (("text", message.content),)


def laid(pieces: Sequence[Piece], end: End) -> tuple[list[tuple[Piece, End]], End, End]:
    """The pieces, long texts cut, each with where it begins behind `end`; the end of all; and that before the last
    text, or behind the last picture if that comes later.
    """
    found, before = list[tuple[Piece, End]](), end
    for piece in pieces:
        row = Placed(piece.ids, 0, None, seen=piece.seen, latents=piece.latents)  # type: ignore[arg-type]
        if row.causal:
            before = end
            for ids in piece.ids.split(CHUNK):
                found.append((Piece(ids), end))
                end = End(end.start + len(ids), end.at + len(ids))
            continue
        found.append((piece, end))
        end = before = End(end.start + row.read + row.drawn, end.at + 1)
    return found, end, before


@dataclass(frozen=True)
class ReadTalk(Loop):
    """From `talk` to `kv`, which remembers it; `blind_kv`, which remembers it without the pictures, None where that is
    a beginning of the other; and `ends`, where what each branch has read ends.
    """

    name: str = "read"
    reads: tuple[str, ...] = ("talk",)
    writes: tuple[str, ...] = ("kv", "blind_kv", "ends")
    uses: tuple[str, ...] = ("model",)
    computed = True

    def begin(self, ctx: Context, state: State) -> list[Step]:
        network = ctx.components.wherever("model")
        assert isinstance(network, Bagel)
        talk = state["talk"]
        rows, end, before = laid(talk, End())
        state["kv"], state["blind_kv"] = network.memory(end.start + ROOM, ctx.device), None
        state["ends"] = {POSITIVE: end, NEGATIVE: before, BLIND: end}
        todo = [("kv", *row) for row in rows]
        said = [piece for piece in talk if piece.seen is None and piece.latents is None]
        if choices(state.request).draws and len(said) < len(talk):
            rows, blind, _ = laid(said, End())
            state["blind_kv"] = network.memory(blind.start, ctx.device)
            state["ends"] |= {BLIND: blind}
            todo += [("blind_kv", *row) for row in rows]
        state.working["todo"] = todo
        return [Step(number, network="model") for number in range(len(todo))]

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        network = ctx.components.wherever("model")
        assert isinstance(network, Bagel)
        said = request.messages or (Message("", request.prompt),)
        most = sum(len(message.content.encode()) + TEMPLATE for message in said)
        most += sum(2 * ctx.limits.max_side**2 // ctx.limits.size_multiple**2 for _ in request.images)
        return len(said) * network.most.token_bytes, 2 * most * network.most.token_bytes

    def cost(self, ctx: Context, state: State) -> int:
        row = self._row(state)
        return row.read + row.drawn

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        row = self._row(state)
        row.kv.reserve(row.start + row.read + row.drawn)
        return [Row(state, POSITIVE, "model", row, row.read + row.drawn, (), Memory(), everywhere=True)]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        """What was read is remembered."""

    def _row(self, state: State) -> Placed:
        slot, piece, end = state.working["todo"][state.position]
        time = None if piece.latents is None else piece.latents.new_zeros(())
        return Placed(piece.ids, end.start, state[slot], end.at, piece.seen, piece.latents, time)


@dataclass(frozen=True)
class ReadThought(ReadTalk):
    """Reads what the model thought, as words that were said to it: `end` is where all that it draws by ends."""

    name: str = "read thoughts"
    reads: tuple[str, ...] = ("kv", "ends", "thought")
    writes: tuple[str, ...] = ("end",)

    def skip(self, ctx: Context, state: State) -> bool:
        if state["thought"] is None:
            state["end"] = state["ends"][POSITIVE]
        return state["thought"] is None

    def begin(self, ctx: Context, state: State) -> list[Step]:
        rows, state["end"], _ = laid([Piece(state["thought"])], state["ends"][POSITIVE])
        state.working["todo"] = [("kv", *row) for row in rows]
        return [Step(number, network="model") for number in range(len(rows))]

    def remembers(self, ctx: Context, request: Request) -> tuple[int, int]:
        return 0, 0
