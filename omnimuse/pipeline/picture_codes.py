"""Stages of a language model that reads pictures as codes, and writes what is in one, a code for each patch, before
another network draws that.

For networks and codes of `components/picture_codes.py`. Writing is a loop like denoising, under the same runner: a
state's next step reads up to `CHUNK` tokens that its memory does not have yet, a piece of the brief or the code that
was written last. How many it writes, the size says beforehand.

Letters: S tokens, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.sampling import Sampling, next_token
from omnimuse.components.picture_codes import PictureWriter
from omnimuse.components.sights import Seeing, line, plane
from omnimuse.core.errors import RequestError
from omnimuse.core.output import TextRead
from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.layers.stack import Memory
from omnimuse.pipeline.generate import CHUNK
from omnimuse.pipeline.reading import Patches
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State

Grid = tuple[int, int]
"""Rows and columns of codes."""

LANGUAGE, PROCESSOR = "vision_language_encoder", "processor"
"""The components that read and write; the second has the tokenizer of the first."""


def writer(ctx: Context) -> PictureWriter:
    """What reads and writes, which need not be on the device for that."""
    network = ctx.components.wherever(LANGUAGE)
    assert isinstance(network, PictureWriter)
    return network


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the language model's configuration says of its text."""
    return config.get("text_config") or {}


@dataclass(frozen=True)
class ReadPictures(Stage):
    """Writes `sources`: of every picture the codes of its patches, int64 [rows, columns], as `prepare` has these.

    None where they are not `wanted`. Equal pictures are looked at once, for all outputs.
    """

    prepare: Callable[[Configs], Patches]
    wanted: Callable[[Configs, Request], bool]
    name: str = "read pictures"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("sources",)
    uses: tuple[str, ...] = (LANGUAGE, PROCESSOR)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return (self, self.wanted(ctx.configs, state.request), *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["sources"] = None
            if self.wanted(ctx.configs, state.request):
                prepared = map(self.prepare(ctx.configs), (canvas(picture, None) for picture in state["images"]))
                state["sources"] = tuple(self._seen(ctx, patches, grid) for patches, grid in prepared)

    def _seen(self, ctx: Context, patches: Tensor, grid: Grid) -> Tensor:
        network = ctx.network(LANGUAGE)
        assert isinstance(network, PictureWriter)
        return network.see(patches.to(ctx.device), *grid).view(grid)


@dataclass(frozen=True)
class Brief:
    """What the model reads, and what it then writes: `ids` of the tokens to read, the grids of what it `draws`, in the
    order it writes them (the last is the picture), and the `places` of all tokens but the last, int64 [3, S].
    """

    ids: Tensor
    draws: tuple[Grid, ...]
    places: Tensor

    @property
    def writes(self) -> int:
        """How many codes it writes."""
        return sum(rows * columns for rows, columns in self.draws)

    @property
    def drawn(self) -> int:
        """How many of them are of the picture."""
        return self.draws[-1][0] * self.draws[-1][1]


@dataclass(frozen=True)
class ReadBrief(Stage):
    """Writes `brief`: a `Brief` of the prompt, the pictures and the size, None where the codes are `given`.

    `text(tokenizer, prompt, pictures, wanted)` is what is read, with a mark for every code of pictures of these grids;
    `wanted(request, size_multiple)` are the grids of what is to be written, the last one first.
    """

    given: Callable[[Configs, Request], bool]
    wanted: Callable[[Request, int], Sequence[Grid]]
    text: Callable[[Any, str, Sequence[Grid], Sequence[Grid]], str]
    name: str = "read brief"
    reads: tuple[str, ...] = ("prompt", "sources")
    writes: tuple[str, ...] = ("brief",)
    uses: tuple[str, ...] = (PROCESSOR,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["brief"] = None if self.given(ctx.configs, state.request) else self._read(ctx, state)

    def _read(self, ctx: Context, state: State) -> Brief:
        tokenizer, sources, config = ctx.components[PROCESSOR], state["sources"], ctx.configs[LANGUAGE]
        grids = [(found.shape[0], found.shape[1]) for found in sources]
        wanted = self.wanted(state.request, ctx.limits.size_multiple)
        text = self.text(tokenizer, state["prompt"], grids, wanted)
        begins = text.startswith(tokenizer.special("bos_token"))
        ids = tokenizer(text, add_special_tokens=not begins).input_ids[0]
        draws = tuple(reversed(wanted))
        places = placed(ids.tolist(), grids, draws, config)
        most = language(config).get("max_position_embeddings")
        if isinstance(most, int) and places.shape[1] > most:
            raise RequestError(
                f"the prompt and its pictures are {len(ids)} tokens, and the picture {sum(r * c for r, c in draws)}; "
                f"this model reads and writes {most} in all: say less",
                "prompt",
            )
        state.notes[self.name] = TextRead("prompt", LANGUAGE, len(ids))
        ids = ids.to(ctx.device)
        if sources:
            here = ids == config["image_token_id"]
            ids = ids.masked_scatter(here, torch.cat([found.flatten() for found in sources]))
        return Brief(ids, draws, places[:, :-1].to(ctx.device))


def placed(ids: Sequence[int], grids: Sequence[Grid], draws: Sequence[Grid], config: Mapping[str, Any]) -> Tensor:
    """The places of all tokens that are read and then written, int64 [3, S]: in a text one follows the other, in a
    picture they have rows and columns. RequestError where other than `grids` stand between the marks of pictures.
    """
    starts = [at + 1 for at, token in enumerate(ids) if token == config["image_start_token_id"]]
    ends = [at for at, token in enumerate(ids) if token == config["image_end_token_id"]]
    sizes = [rows * columns for rows, columns in grids]
    found = [end - start for start, end in zip(starts, ends, strict=False)]
    held = sum(token == config["image_token_id"] for token in ids)
    if (found, len(ends), held) != (sizes, len(grids), sum(sizes)):
        raise RequestError("the prompt holds tokens that stand for pictures; take them out", "prompt")
    parts, at, before = list[Tensor](), 0, 0
    for start, end, grid in zip(starts, ends, grids, strict=False):
        parts += [line(at, start - before), plane(at + start - before, (1, *grid))]
        at, before = at + start - before + max(grid), end
    parts.append(line(at, len(ids) - before))
    at += len(ids) - before
    for grid in draws:
        parts.append(plane(at, (1, *grid)))
        at += max(grid)
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class WriteCodes(Loop):
    """From `brief` to `prior`, what is `made` of the codes that the model writes of the picture, int64 [rows, columns];
    `kv` is what it remembers meanwhile. Where there is no brief, the prior is `given` instead.

    Codes are chosen as `how` says, with a generator of its own of the output's seed. The picture can have `most` codes;
    one that it cannot, and an end, are chosen once more.
    """

    how: Callable[[Configs], Sampling]
    most: Callable[[Configs], int]
    made: Callable[[Tensor], Tensor]
    given: Callable[[Context, Request], Tensor]
    name: str = "write prior"
    reads: tuple[str, ...] = ("brief",)
    writes: tuple[str, ...] = ("kv", "prior")
    uses: tuple[str, ...] = (LANGUAGE,)
    computed = True

    def skip(self, ctx: Context, state: State) -> bool:
        if state["brief"] is not None:
            return False
        state["kv"], state["prior"] = None, self.given(ctx, state.request)
        return True

    def begin(self, ctx: Context, state: State) -> list[Step]:
        brief, working, network = state["brief"], state.working, writer(ctx)
        working["how"] = self.how(ctx.configs)
        working["generator"] = torch.Generator().manual_seed(state.request.seed(state.output))
        working["tokens"], working["remembered"], working["turns"] = brief.ids, 0, network.turns(brief.places)
        state["kv"] = network.memory(brief.places.shape[1], ctx.device)
        steps = -(-len(brief.ids) // CHUNK) + brief.writes - 1  # the last piece of the brief gives the first code
        return [Step(index, network=LANGUAGE) for index in range(steps)]

    def tokens(self, ctx: Context, request: Request) -> int:
        return 1

    def cost(self, ctx: Context, state: State) -> int:
        working = state.working
        return min(CHUNK, len(working["tokens"]) - working["remembered"])

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        start, tokens = state.working["remembered"], state.working["tokens"]
        ids = tokens[start : start + CHUNK]
        turns = state.working["turns"][:, start : start + len(ids)]
        read = Seeing(ids, start, state["kv"], turns=turns)
        return [Row(state, "positive", LANGUAGE, read, tokens=len(ids), shape=(), memory=Memory())]

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        working = state.working
        working["remembered"] += self.cost(ctx, state)
        if working["remembered"] < len(working["tokens"]):
            return  # more of the brief is to be read
        token = self._choose(ctx, state, predictions["positive"])
        working["tokens"] = torch.cat([working["tokens"], working["tokens"].new_full((1,), token)])

    def finish(self, ctx: Context, state: State) -> None:
        brief = state["brief"]
        state["prior"] = self.made(state.working["tokens"][-brief.drawn :].view(brief.draws[-1]))

    def _choose(self, ctx: Context, state: State, logits: Tensor) -> int:
        """The next code of logits [V]."""
        how, generator, brief, most = state.working["how"], state.working["generator"], state["brief"], self.most
        written = len(state.working["tokens"]) - len(brief.ids)
        token = next_token(logits, (), written, how, generator)
        drawn = written >= brief.writes - brief.drawn
        if token not in how.ends and (token < most(ctx.configs) or not drawn):
            return token
        no_codes = range(most(ctx.configs), len(logits))
        return next_token(logits, (), written, replace(how, suppressed=(*how.suppressed, *no_codes)), generator)
