"""What GLM-Image's language model is given to read: pictures as tokens, the prompt, and the sizes of what it is to say.

Source: transformers' GlmImageProcessor and `GlmImageModel.get_rope_index`, and the reference pipeline of diffusers.
No torchvision: Pillow does the arithmetic.

Letters: S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnimuse.components.sights import line, plane
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.output import TextRead
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.models.glm_image.language import GlmImageWriter
from omnimuse.models.glm_image.spec import COARSE, LANGUAGE, PROCESSOR, GlmImageParams
from omnimuse.pipeline.reading import Patches
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

MOST_UNLIKE = 4
"""How many times longer than the other a side of a picture may be."""
SKETCH = 16
"""Rows and columns of a square sketch, which the model writes before a picture that starts from nothing."""

Grid = tuple[int, int]
"""Rows and columns."""


class Pieces(Patches):
    """How a picture becomes patches of the vision tower, of which each stands for four times its pixels."""

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Half of `width` x `height` in whole patches, unless that has too short or too long a side."""
        short, long = min(width, height), max(width, height)
        if short < self.side or long > MOST_UNLIKE * short:
            raise RequestError(
                f"a picture of {width}x{height} cannot be read: both sides must have {self.side} pixels, and neither "
                f"more than {MOST_UNLIKE} times those of the other; give another one, or a part of it",
                "images",
            )
        least, most = (round(math.sqrt(area)) for area in (self.least, self.most))
        scale = least / short if short < least else 1.0
        scale = most / long if long * scale > most else scale
        sides = [max(self.side, round(side // 2 * scale / self.side) * self.side) for side in (width, height)]
        if max(sides) > most:
            shrink = max(sides) / most
            sides = [max(self.side, math.floor(side / shrink / self.side) * self.side) for side in sides]
        return sides[0], sides[1]

    @classmethod
    def told(cls, configs: Configs) -> Pieces:
        """What the checkpoint says; ModelError for what is not done here."""
        found = cls.of(configs[PROCESSOR])
        assert isinstance(found, Pieces)
        if (found.merge, found.frames) != (1, 1):
            raise ModelError(
                f"the processor's configuration has merge_size={found.merge} and temporal_patch_size={found.frames}; "
                "only 1 and 1 are supported"
            )
        return found

    def grid(self, picture: Picture) -> Grid:
        """Rows and columns of its patches."""
        width, height = self.fitted(picture.width, picture.height)
        return height // self.side, width // self.side


def seen_by_the_model(configs: Configs, request: Request) -> bool:
    """Whether the language model says what is in pictures that are shown, and not whoever asks."""
    assert isinstance(request.extra, GlmImageParams)
    return LANGUAGE in configs and not request.extra.prior_token_image_ids


@dataclass(frozen=True)
class ReadPictures(Stage):
    """Writes `sources`: of every picture the tokens of its patches, int64 [rows, columns], by the language model.

    None where whoever asks gives these. Equal pictures are looked at once, for all outputs.
    """

    name: str = "read pictures"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("sources",)
    uses: tuple[str, ...] = (LANGUAGE, PROCESSOR)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        seen = seen_by_the_model(ctx.configs, state.request)
        return (self, seen, *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            state["sources"] = None
            if seen_by_the_model(ctx.configs, state.request):
                state["sources"] = tuple(self._read(ctx, picture) for picture in state["images"])

    def _read(self, ctx: Context, picture: Picture) -> Tensor:
        patches, grid = Pieces.told(ctx.configs)(canvas(picture, None))
        network = ctx.network(LANGUAGE)
        assert isinstance(network, GlmImageWriter)
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
        """How many tokens it writes."""
        return sum(rows * columns for rows, columns in self.draws)


@dataclass(frozen=True)
class ReadBrief(Stage):
    """Writes `brief`: a `Brief` of the prompt, the pictures and the size, None where the prior's tokens are given."""

    name: str = "read brief"
    reads: tuple[str, ...] = ("prompt", "sources")
    writes: tuple[str, ...] = ("brief",)
    uses: tuple[str, ...] = (PROCESSOR,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            extra = state.request.extra
            assert isinstance(extra, GlmImageParams)
            state["brief"] = None if extra.prior_token_ids else self._read(ctx, state)

    def _read(self, ctx: Context, state: State) -> Brief:
        if LANGUAGE not in ctx.configs:
            raise RequestError(
                f"this checkpoint has no language model ({LANGUAGE}), which says what is in the picture; give its "
                "tokens as extra.prior_token_ids, or use a complete checkpoint",
                "extra.prior_token_ids",
            )
        tokenizer, sources = ctx.components[PROCESSOR], state["sources"]
        grids = [(found.shape[0], found.shape[1]) for found in sources]
        wanted = wanted_grids(state.request, ctx.limits.size_multiple)
        text = self._text(tokenizer, state["prompt"], grids, wanted)
        begins = text.startswith(tokenizer.special("bos_token"))
        ids = tokenizer(text, add_special_tokens=not begins).input_ids[0]
        config, draws = ctx.configs[LANGUAGE], tuple(reversed(wanted))
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

    def _text(self, tokenizer: Any, prompt: str, pictures: Sequence[Grid], wanted: Sequence[Grid]) -> str:
        """The chat of one message, with as many tokens for every picture as it has patches, then the sizes wanted."""
        place, begins, opens, closes = (
            tokenizer.special(name) for name in ("image_token", "bos_token", "grid_bos_token", "grid_eos_token")
        )
        for token in (place, begins):
            if token in prompt:
                raise RequestError(f"the prompt holds {token}, which stands for a picture; take it out", "prompt")
        said = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
        parts = tokenizer.apply_chat_template([{"role": "user", "content": said}]).split(place)
        if len(parts) != len(pictures) + 1:
            raise ModelError(
                f"the chat template has {len(parts) - 1} {place} for {len(pictures)} pictures; use another checkpoint"
            )
        counts = [rows * columns for rows, columns in pictures]
        chat = "".join(part + place * count for part, count in zip(parts, [*counts, 0], strict=True))
        return chat + "".join(f"{opens}{rows} {columns}{closes}" for rows, columns in wanted) + begins


def wanted_grids(request: Request, size_multiple: int) -> list[Grid]:
    """The grid of what is drawn and, where it starts from nothing, that of a sketch of it, which is written first."""
    columns, rows = (length // size_multiple for length in request.size)
    if request.images:
        return [(rows, columns)]
    ratio = rows / columns
    return [(rows, columns), (int(math.sqrt(ratio) * SKETCH), int(math.sqrt(1 / ratio) * SKETCH))]


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


def language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the language model's configuration says of its text."""
    return config.get("text_config") or {}


def finer(tokens: Tensor) -> Tensor:
    """Tokens [rows, columns] of a picture -> those of its finer patches, [rows * columns * COARSE**2]."""
    return tokens.repeat_interleave(COARSE, 0).repeat_interleave(COARSE, 1).flatten()
