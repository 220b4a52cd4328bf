"""Decoders that are shown something among the tokens they read, and whose tokens have places on three axes.

What is shown stands in the place of tokens, and the first layers may be told more of it. A token has a place in time, a
row and a column, by which pairs of a head turn; of a text all three are equal, so it turns as any other does.

Letters: R rows, S tokens of a row, T of all rows, D width, M tokens of all rows that stand for something shown, L
layers that are told more, P pairs of a head, E width of what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.ar.kv import UNKNOWN, Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.attention.layout import Layout
from omnimuse.components.decoder import DecoderLayer, DenseDecoder
from omnimuse.components.qwen3_facts import Qwen3Config

AXES = 3


@dataclass(frozen=True)
class Seen:
    """What stands for a picture, a video or a sound: `shown` [P, E] in the place of its tokens, and `deep` [L, P, E],
    which is added behind each of the first layers (nothing of a sound).
    """

    shown: Tensor
    deep: Tensor

    @staticmethod
    def joined(parts: Sequence[Seen]) -> Seen:
        """Several, one after the other; where less is told of one than of others, zeros are."""
        layers = max(len(each.deep) for each in parts)
        deep = [F.pad(each.deep, (0, 0, 0, 0, 0, layers - len(each.deep))) for each in parts]
        return Seen(torch.cat([each.shown for each in parts]), torch.cat(deep, dim=1))


@dataclass(frozen=True)
class Seeing(Reading):
    """A row of a conversation in which something is shown: its tokens are `shift` places further on than counted or,
    within the prompt, turn by `turns`, [2, S, 1, P]; `at` some of them, bool [S], stands what is `seen`. What the
    talker hears of these goes into `heard`, [M, D].
    """

    shift: int = 0
    turns: Tensor | None = None
    at: Tensor | None = None
    seen: Seen | None = None
    heard: Tensor | None = None

    def behind(self) -> Seeing:
        return Seeing(UNKNOWN, self.start + 1, self.kv, self.shift, forbidden=self.forbidden[1:])

    @property
    def place(self) -> int:
        return self.start + self.shift


@dataclass(frozen=True)
class Sights(Conditions):
    """What every layer receives of rows of which some are shown something."""

    @cached_property
    def seen(self) -> tuple[Tensor, Seen | None]:
        """Which of all tokens, laid end to end, stand for something, [M], and what does."""
        masks, found = list[Tensor](), list[Seen]()
        for row in self.rows:
            if isinstance(row, Seeing) and row.at is not None and row.seen is not None:
                masks.append(row.at)
                found.append(row.seen)
            else:
                masks.append(torch.zeros(row.count, dtype=torch.bool, device=row.kv.device))
        return torch.cat(masks).nonzero()[:, 0], Seen.joined(found) if found else None

    def show(self, hidden: Tensor) -> Tensor:
        """What stands for tokens, [*, D], with what is shown in its place."""
        where, seen = self.seen
        if seen is None:
            return hidden
        return hidden.flatten(0, 1).index_copy(0, where, seen.shown.to(hidden.dtype)).view_as(hidden)

    def overhear(self, hidden: Tensor) -> None:
        """Give every row that wants them the hidden states of what it is shown."""
        at = 0
        for row in self.rows:
            if isinstance(row, Seeing) and row.seen is not None:
                if row.heard is not None:
                    where = self.seen[0][at : at + len(row.seen.shown)]
                    row.heard.copy_(hidden.flatten(0, 1)[where])
                at += len(row.seen.shown)

    def overheard(self) -> list[Tensor]:
        return [row.heard for row in self.rows if isinstance(row, Seeing) and row.heard is not None]

    def tell(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states behind a layer, [*, D], with what is told there."""
        where, seen = self.seen
        if seen is None or layer >= len(seen.deep):
            return hidden
        return hidden.flatten(0, 1).index_add(0, where, seen.deep[layer].to(hidden.dtype)).view_as(hidden)


class PlacedDecoder(DenseDecoder):
    """A decoder of which rows may be shown something; each pair of a head turns by one of the `axes` of a place.

    Without `axes` all pairs follow the first.
    """

    def __init__(
        self,
        config: Qwen3Config,
        make: Callable[[int], DecoderLayer] | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, make)
        self.axes = list(axes or [0] * (config.head_dim // 2))

    def turns(self, places: Tensor) -> Tensor:
        """Cosines and sines of the angles by which tokens at `places`, int64 [3, S], turn: [2, S, 1, P]."""
        pairs = len(self.axes)
        speeds = 1.0 / self.config.rope_theta ** (torch.arange(pairs, device=places.device).float() / pairs)
        angles = places.float()[self.axes].T * speeds  # [S, P]
        return torch.stack([angles.cos(), angles.sin()])[:, :, None]

    def conditions(self, rows: Sequence[Reading], layout: Layout) -> Conditions:
        spans = _spans(self, rows, layout)
        return super().conditions(rows, layout) if spans is None else Sights.of(rows, layout, *spans)


class ShownDecoder(PlacedDecoder):
    """Tokens, what is shown and what came before them -> logits of the next token."""

    def __init__(
        self, config: Qwen3Config, axes: Sequence[int], make: Callable[[int], DecoderLayer] | None = None
    ) -> None:
        super().__init__(config, make, axes)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        hidden = self.embed_tokens(given)
        return cond.show(hidden) if isinstance(cond, Sights) else hidden

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)


def woven(sections: Sequence[int], pairs: int) -> list[int]:
    """Which axis each pair of a head follows where the axes alternate, as long as there are some of their sections."""
    axes = [0] * pairs
    for axis in range(1, AXES):
        turned = range(axis, sections[axis] * AXES, AXES)
        axes[turned.start : turned.stop : AXES] = [axis] * len(turned)
    return axes


def in_turn(sections: Sequence[int]) -> list[int]:
    """Which axis each pair of a head follows where one section comes after the other."""
    return [number % AXES for number, count in enumerate(sections) for _ in range(count)]


def line(first: int, count: int) -> Tensor:
    """The places of so many tokens of a text, or of moments of a sound, from place `first` on: int64 [3, count]."""
    return torch.arange(first, first + count).expand(AXES, -1)


def plane(first: int, grid: tuple[int, int, int], apart: int = 1) -> Tensor:
    """The places of the pieces of what can be seen, moments, rows and columns of them, from place `first` on, moments
    `apart` from each other: int64 [3, t h w].
    """
    times, down, across = (torch.arange(length) for length in grid)
    return first + torch.stack(torch.meshgrid(times * apart, down, across, indexing="ij")).flatten(1)


def _spans(decoder: DenseDecoder, rows: Sequence[Reading], layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of rows of which some have `turns` of their own, packed; None where none has."""
    own = [row.turns if isinstance(row, Seeing) else None for row in rows]
    if all(each is None for each in own):
        return None
    turns = decoder.turned(max(row.place + row.count for row in rows), rows[0].kv.device)
    spans = [
        turns[:, row.place : row.place + row.count] if each is None else each.to(turns.dtype)
        for row, each in zip(rows, own, strict=True)
    ]
    if layout.length == 1:
        spans += spans[:1] * (decoder.fewest - len(rows))  # nobody looks at what comes of more
        cos, sin = torch.stack(spans, dim=1).unbind()
        return cos, sin
    cos, sin = (layout.pack([span[side] for span in spans]) for side in (0, 1))
    return cos, sin
