"""Stock stage: a prompt and the pictures that came with it become text features, by a language model that sees.

The preparation of a picture is that of transformers' Qwen2VLImageProcessor with Pillow for its arithmetic, without
torchvision: whole patches in the picture's own proportions, Pillow's bicubic filter on 8 bits, means and deviations.

Letters: S tokens, D width of the features; P patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.guidance import POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Size
from omnimuse.pipeline.region import margins, seen
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import Tokens, limit_of, text_of

PLACE = "<|image_pad|>"
"""The token that stands, as often as a picture has pieces, where the picture is."""
MOST_UNLIKE = 200
"""How many times longer than the other a side may be."""


@dataclass(frozen=True)
class Patches:
    """How a picture becomes patches, of which the model joins `merge` x `merge` to one piece; from a configuration."""

    side: int = 14
    merge: int = 2
    frames: int = 2
    least: int = 56 * 56
    most: int = 28 * 28 * 1280
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Patches:
        """What `config`, the contents of a processor's file, says; ModelError for what is not done here."""
        own = config.get("image_processor") or config
        for name in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"):
            if not own.get(name, True):
                raise ModelError(f"the processor's configuration has {name}={own[name]!r}; only true is supported")
        if (resample := own.get("resample", Image.Resampling.BICUBIC)) != Image.Resampling.BICUBIC:
            raise ModelError(f"the processor's configuration has resample={resample!r}; only 3 (bicubic) is supported")
        size = own.get("size") or {}
        return cls(
            own.get("patch_size", cls.side),
            own.get("merge_size", cls.merge),
            own.get("temporal_patch_size", cls.frames),
            own.get("min_pixels") or size.get("shortest_edge", cls.least),
            own.get("max_pixels") or size.get("longest_edge", cls.most),
            own.get("rescale_factor", cls.factor),
            tuple(own.get("image_mean") or cls.mean),
            tuple(own.get("image_std") or cls.deviation),
        )

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in whole pieces, near `width` x `height`, of neither too few nor too many pixels."""
        if max(width, height) > MOST_UNLIKE * min(width, height):
            raise RequestError(
                f"a picture of {width}x{height} is too narrow: one side may be {MOST_UNLIKE} times the other at most; "
                "give a part of it",
                "images",
            )
        piece = self.side * self.merge
        wide, high = round(width / piece) * piece, round(height / piece) * piece
        if wide * high > self.most:
            shrink = math.sqrt(width * height / self.most)
            wide, high = (max(piece, math.floor(side / shrink / piece) * piece) for side in (width, height))
        elif wide * high < self.least:
            grow = math.sqrt(self.least / (width * height))
            wide, high = (math.ceil(side * grow / piece) * piece for side in (width, height))
        return wide, high

    def __call__(self, picture: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """The patches of `picture`, piece by piece, float32 [P, numbers of a patch], and their rows and columns."""
        resized = picture.resize(self.fitted(*picture.size), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(resized)).double().mul(self.factor).float()  # [H, W, 3]
        normed = (values - torch.tensor(self.mean)) / torch.tensor(self.deviation)
        rows, columns = (length // self.side for length in normed.shape[:2])
        m, p = self.merge, self.side
        x = normed.reshape(rows // m, m, p, columns // m, m, p, 3).permute(
            0, 3, 1, 4, 6, 2, 5
        )  # [.., .., m, m, 3, p, p]
        x = x.unsqueeze(5).expand(*x.shape[:5], self.frames, p, p)  # a picture is a video that stands still
        return x.reshape(rows * columns, -1), (rows, columns)


@dataclass(frozen=True)
class Framed:
    """A prompt and its pictures within a text: `frame(prompt, pictures)` makes it, with one `PLACE` for each of so many
    pictures. It is read whole; the features of its first `drop` tokens are left out.
    """

    frame: Callable[[str, int], str]
    drop: int = 0

    def __call__(self, tokenizer: Any, prompt: str, limit: int, pieces: Sequence[int]) -> Tokens:
        parts = self.frame(prompt, len(pieces)).split(PLACE)
        text = "".join(part + PLACE * count for part, count in zip(parts, [*pieces, 0], strict=True))
        made = tokenizer(text, return_tensors="pt")
        count = made.input_ids.shape[1]
        return Tokens(made.input_ids, made.attention_mask, self.drop, count, count - self.drop, count - self.drop)


@dataclass(frozen=True)
class ReadWithPictures(Stage):
    """Read the prompt of `branch` with the request's pictures; the last states are that branch's `text`: [S, D].

    `tokens(tokenizer, prompt, limit, pieces)` makes the tokens, with as many times `PLACE` for every picture as it has
    pieces. Each picture is brought to the sizes `fit(request, picture)`, one after the other, by Lanczos' filter before
    it is prepared. The encoder is called as the body of transformers' Qwen2.5-VL is, and told the tokens' positions:
    those of pictures have rows and columns.
    """

    tokens: Callable[[Any, str, int, Sequence[int]], Tokens]
    fit: Callable[[Request, Picture], Sequence[Size]]
    branch: str = POSITIVE
    text: str = "embeds"
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    processor: str = "processor"
    lendable: ClassVar[bool] = True
    computed = True

    @property
    def source(self) -> Literal["prompt", "negative_prompt"]:
        """The field of a request that is read."""
        return "prompt" if self.branch == POSITIVE else "negative_prompt"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"read {self.source.replace('_', ' ')}"

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.source, "images")

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"{self.branch}_{self.text}",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.encoder, self.tokenizer)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        request = state.request
        if self.branch not in request.branches:
            return "not needed"
        choices = request.params.width, request.params.height, request.extra  # all that `fit` may ask
        pictures = (picture.digest for picture in state["images"])
        read = text_of(ctx, state, self.source), limit_of(ctx, request)
        return (self, *read, *choices, *margins(request), *pictures)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            [slot] = self.writes
            if self.branch in state.request.branches:
                state[slot], state.notes[self.name] = self._encode(ctx, text_of(ctx, state, self.source), state)
            else:
                state[slot] = None

    def _encode(self, ctx: Context, prompt: str, state: State) -> tuple[Tensor, TextRead]:
        if PLACE in prompt:
            raise RequestError(f"the prompt holds {PLACE}, which stands for a picture; take it out", self.source)
        prepare, limit = Patches.of(ctx.configs[self.processor]), limit_of(ctx, state.request)
        read = [prepare(self._fitted(state.request, picture)) for picture in state["images"]]
        pieces = [rows * columns // prepare.merge**2 for _, (rows, columns) in read]
        tokens = self.tokens(ctx.components[self.tokenizer], prompt, limit, pieces)
        network: Any = ctx.network(self.encoder)
        given = {}
        if read:
            patches, grids = torch.cat([patches for patches, _ in read]), torch.tensor([[1, *grid] for _, grid in read])
            given["pixel_values"] = patches.to(ctx.device, next(network.parameters()).dtype)
            given["image_grid_thw"] = grids.to(ctx.device)
            # On the CPU, where the numbers are that it reads: on a device the host would wait for each.
            kinds = tokens.ids.eq(network.config.image_token_id).int()
            places, _ = network.get_rope_index(tokens.ids, kinds, grids, attention_mask=tokens.mask)  # [3, 1, S]
            given["position_ids"] = places.to(ctx.device)
        output = network(tokens.ids.to(ctx.device), attention_mask=tokens.mask.to(ctx.device), **given)
        lost = tokens.whole - tokens.read
        why = f"max_sequence_length={limit}" if lost else ""
        told = TextRead(self.source, self.encoder, tokens.read, lost, why)
        return output.last_hidden_state[0][tokens.first : tokens.last], told

    def _fitted(self, request: Request, picture: Picture) -> Image.Image:
        image = seen(request, picture)
        for size in self.fit(request, picture):
            image = image.resize(size, Image.Resampling.LANCZOS)
        return image
