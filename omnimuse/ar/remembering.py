"""Attention of decoders: each row sees its own memory, and what is read now, which it then has, too.

Rows that read one token attend together, in one call for all that lie in one slab and are about equally long, and so do
equally long prompts that lie there side by side. How much of the memory a call looks at depends on a row's own length
alone, and the rest is masked, so company changes no bit.

Letters: R rows, S tokens of a row, T of all rows, N heads, H head dim, P pairs of a head that turn, L layers, G heads
that share one of keys and values, W tokens that a call looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.ar.kv import KV, LEAST, Reading, numbers
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut
from omnimuse.layers.steady import evenly

NONE = -1
"""In the place of a token, where none is the likeliest."""
GAP = 2
"""Places of others between two rows that still share a call."""


@dataclass(frozen=True)
class Sight:
    """How a layer looks: at no more than the last `window` tokens, with what each weighs softly bounded by `cap`."""

    window: int | None = None
    cap: float | None = None

    def whole(self, tokens: int) -> bool:
        """Whether so many tokens are seen as they are."""
        return self.cap is None and (self.window is None or tokens <= self.window)


PLAIN = Sight()


@dataclass(frozen=True)
class Spots:
    """Where rows of one token that share a call lie: in the places from `first` to `end` of the slab `data`.

    Other rows may lie between them; what these would see is thrown away.
    """

    data: Tensor  # [L, 2, places, heads of keys, room, H], of layers from `base` on
    base: int
    first: int
    end: int
    window: int
    vectors: Tensor  # where theirs begin in a layer of `data`, seen as vectors: [rows, 2 * heads of keys]
    rows: Tensor | None  # which of the R these are; None: all, in order
    by_place: Tensor | None  # which of `rows` lies in each place from `first` to `end`, or any; None: they are in order
    places: Tensor | None  # where each of `rows` lies from `first` on; None: they are in order
    masks: Tensor  # [W + 1, W], a view: 0 but for the last so many, which are -inf

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The memory of each layer: as vectors, [*, H], and the keys and values that are looked at."""
        seen = self.data[:, :, self.first : self.end, :, : self.window]
        vectors = self.data.view(len(self.data), -1, self.data.shape[-1])
        return list(zip(vectors.unbind(), seen[:, 0].unbind(), seen[:, 1].unbind(), strict=True))

    def after(self, starts: Tensor) -> Together:
        """These rows, when as many others as `starts` [R] says come before their token."""
        if self.rows is not None:
            starts = starts[self.rows]
        written = (self.vectors + starts[:, None]).view(-1)
        last = starts if self.by_place is None else starts[self.by_place]
        return Together(self, written, last, self.masks.index_select(0, self.window - 1 - last)[:, None, None])


@dataclass(frozen=True)
class Together:
    """Rows of one token that attend in one call, at their `spots`."""

    spots: Spots
    written: Tensor  # where their keys and values go in a layer, seen as vectors: [rows * 2 * heads of keys]
    last: Tensor  # which token is the last one that each place sees, [end - first]
    mask: Tensor  # [end - first, 1, 1, W], 0 where a token is seen, else -inf

    @property
    def rows(self) -> Tensor | None:
        """Which of the R these are; None: all, in order."""
        return self.spots.rows

    @cached_property
    def masks(self) -> dict[int | None, Tensor]:
        """`mask`, by the window of the layers that look through it."""
        return {None: self.mask}

    def within(self, window: int | None) -> Tensor:
        """`mask` for layers that see no more than the last `window` tokens."""
        if window is not None and window not in self.masks:
            places = torch.arange(self.spots.window, device=self.last.device)
            gone = places <= (self.last - window)[:, None]
            self.masks[window] = self.mask.masked_fill(gone[:, None, None], -torch.inf)
        return self.masks[window]

    def attend(self, layer: int, q: Tensor, kv: Tensor, sight: Sight = PLAIN) -> Tensor:
        """Queries [R, N, H], keys and values [R, 2, heads of keys, H] -> what these rows see, [rows, N, H]."""
        spots = self.spots
        if spots.rows is not None:
            q, kv = q[spots.rows], kv[spots.rows]
        memory, keys, values = spots.layers[layer - spots.base]
        _, _, heads, dim = kv.shape
        memory.index_copy_(0, self.written, kv.reshape(-1, dim))
        if spots.by_place is not None:
            q = q[spots.by_place]
        # Heads that share keys are as so many tokens: none of them has to be copied for that.
        shared = q.view(q.shape[0], heads, -1, dim)  # [places, heads of keys, G, H]
        seen = _seen_by_ones(shared, keys, values, self.within(sight.window), sight.cap).reshape(q.shape[0], -1, dim)
        return seen if spots.places is None else seen[spots.places]


@dataclass(frozen=True)
class Conditions:
    """What every layer receives beside the hidden states: rotations, packed like these, and the rows' memories."""

    layout: Layout
    cos: Tensor  # [1, T, 1, P] or [R, S, 1, P], of the angle by which a place turns
    sin: Tensor
    rows: tuple[Reading, ...]

    @classmethod
    def of(cls, rows: Sequence[Reading], layout: Layout, cos: Tensor, sin: Tensor) -> Self:
        """Those of `rows`, which `layout` packs."""
        return cls(layout, cos, sin, tuple(rows))

    @property
    def dense(self) -> bool:
        return False

    def select(self, rows: Sequence[int]) -> Self:
        return type(self)(
            self.layout.select(rows),
            self.layout.take(self.cos, rows),
            self.layout.take(self.sin, rows),
            tuple(self.rows[row] for row in rows),
        )

    def cut(self, part: Cut) -> Self | None:
        if any(row.keep for row in self.rows):
            return None  # every rank remembers the whole of it
        cos, sin = (self.layout.share(each, part) for each in (self.cos, self.sin))
        return type(self)(self.layout.cut(part), cos, sin, self.rows)

    @cached_property
    def masks(self) -> dict[int | None, tuple[Tensor | None, ...]]:
        """What was found by `within`."""
        return {}

    def within(self, window: int | None) -> tuple[Tensor | None, ...]:
        """[S, start + S] of each row, True where a token sees another, of the last `window` alone; None for those that
        see all, and the first of all.
        """
        if window not in self.masks:
            self.masks[window] = tuple(_mask(row, window) for row in self.rows)
        return self.masks[window]

    @cached_property
    def together(self) -> tuple[Together, ...]:
        """How rows of one token share calls."""
        starts = numbers([row.start for row in self.rows], self.rows[0].kv.device)
        return tuple(spots.after(starts) for spots in _together(self.rows))

    @cached_property
    def order(self) -> Tensor | None:
        """Where each row is among those that `together` has one after the other; None: in order."""
        if len(self.together) == 1:
            return None
        rows = torch.cat([each.rows for each in self.together if each.rows is not None])
        return rows.argsort()

    @cached_property
    def begun(self) -> Tensor | None:
        """The memory of rows that begin, are equally long and lie side by side, [L, 2, R, heads of keys, S, H]: they
        share a call as well. None: others.
        """
        data, first = self.rows[0].kv.slab
        for place, row in enumerate(self.rows, first):
            slab, there = row.kv.slab
            if row.start or not (row.keep and row.causal) or there != place or slab is not data:
                return None
        return data[:, :, first : first + len(self.rows), :, : self.layout.length] if self.layout.dense else None

    @cached_property
    def turns(self) -> tuple[Tensor, Tensor]:
        """How heads are `turned`: by what both numbers of every pair are multiplied, and their partners, packed like
        the hidden states, [*, 1, 2 P] each.
        """
        return torch.cat([self.cos, self.cos], -1), torch.cat([-self.sin, self.sin], -1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sight: Sight = PLAIN) -> Tensor:
        """Queries [B, S, N, H], keys and values of as many heads or fewer, packed -> what is seen, [B, S, N H]."""
        if self.layout.length == 1:
            return self.attend_ones(layer, q[:, 0], torch.stack([k[:, 0], v[:, 0]], 1), sight)
        if self.begun is not None and sight.whole(self.layout.length):
            memory = self.begun[layer - self.rows[0].kv.first].copy_(torch.stack([k, v]).transpose(2, 3))
            return _seen(q.transpose(1, 2), *memory.unbind(), causal=True).transpose(1, 2).flatten(2)
        parts = (self.layout.unpack(part) for part in (q, k, v))
        masks = self.within(sight.window)
        seen = [
            _attend(row, layer, q, k, v, mask, sight.cap)
            for row, q, k, v, mask in zip(self.rows, *parts, masks, strict=True)
        ]
        return self.layout.pack(seen)

    def across(self, site: Attention, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `attend`, where ranks may have shares of every row, which then attend at `site`."""
        if self.layout.part is None:
            return self.attend(layer, q, k, v)
        shared = q.shape[2] // k.shape[2]  # heads that look at the same keys
        k, v = (x.repeat_interleave(shared, dim=2) for x in (k, v))
        memories = (row.kv.of(layer)[:, :, : row.start].transpose(1, 2) for row in self.rows)
        known = [each.repeat_interleave(shared, dim=2) for each in memories]  # [2, start, N, H]
        return site(q, k, v, self.layout, known=known).flatten(2)

    def attend_ones(self, layer: int, q: Tensor, kv: Tensor, sight: Sight) -> Tensor:
        """Queries [R, N, H], keys and values [R, 2, heads of keys, H] of a token of each row -> [R, 1, N H].

        There may be more than rows; they see something.
        """
        count, given = len(self.rows), q.shape[0]
        if count < given:
            q, kv = q[:count], kv[:count]
        seen = [each.attend(layer, q, kv, sight) for each in self.together]
        whole = seen[0] if self.order is None else torch.cat(seen)[self.order]
        if count < given:
            whole = torch.cat([whole, whole[:1].expand(given - count, -1, -1)])
        return whole.reshape(given, 1, -1)


def turned(x: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Heads [B, S, *, H], of whose first 2 P numbers each pair (x[i], x[i + P]) is turned by its angle: `own` and
    `other` are `Conditions.turns`. Rounded where the reference rounds.
    """
    if (turning := own.shape[-1]) < x.shape[-1]:
        return torch.cat([turned(x[..., :turning], own, other), x[..., turning:]], dim=-1)
    return x * own + x.roll(turning // 2, -1) * other


@lru_cache(maxsize=4096)
def window(length: int) -> int:
    """How much of the memory a row of so many tokens looks at: a function of its length, at most a quarter more."""
    step = max(LEAST, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def _together(rows: Sequence[Reading]) -> list[Spots]:
    """One for all rows that lie near one another in one slab and look at as much of it: the same for many tokens."""
    places = [row.kv.place for row in rows]
    if places[0] is None or any(place is None or place.slab is not places[0].slab for place in places):
        return _near(rows)
    lie = tuple([(place.index, window(row.start + 1)) for place, row in zip(places, rows, strict=True) if place])
    return places[0].slab.kept(lie, partial(_near, rows))


def _near(rows: Sequence[Reading]) -> list[Spots]:
    alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, row in enumerate(rows):
        data, place = row.kv.slab
        alike.setdefault((id(data), min(window(row.start + 1), row.kv.room)), []).append((place, number))
    found: list[tuple[int, list[tuple[int, int]]]] = []
    for (_, wide), there in alike.items():
        before = -GAP - 2
        for place, number in sorted(there):
            if place - before > GAP + 1:
                found.append((wide, []))
            found[-1][1].append((number, place))
            before = place
    return [_spots(rows, sorted(near), wide, alone=len(found) == 1) for wide, near in found]


def _spots(rows: Sequence[Reading], near: Sequence[tuple[int, int]], wide: int, alone: bool) -> Spots:
    """Those of the rows with these numbers, at these places: the same as for the last token, if they were there."""
    kv = rows[near[0][0]].kv
    make = partial(_found, kv, near, wide, alone)
    return make() if kv.place is None else kv.place.slab.kept((tuple(near), wide, alone), make)


def _found(kv: KV, near: Sequence[tuple[int, int]], wide: int, alone: bool) -> Spots:
    data, _ = kv.slab
    _, _, many, heads, room, _ = data.shape
    device = data.device
    places, at = [number for number, _ in near], [place for _, place in near]
    first, end = min(at), max(at) + 1
    which = [0] * (end - first)  # a place between sees as much as one of them does
    for index, place in enumerate(at):
        which[place - first] = index
    vectors = numbers([place * heads * room for place in at], device)[:, None]
    parts = torch.arange(0, 2 * many * heads * room, many * heads * room, device=device)[:, None]
    parts = (parts + torch.arange(0, heads * room, room, device=device)).view(-1)  # [2 * heads of keys]
    steps = torch.zeros(2 * wide, dtype=data.dtype, device=device)
    steps[wide:] = -torch.inf
    in_order = at == list(range(first, end))
    return Spots(
        data,
        kv.first,
        first,
        end,
        wide,
        vectors + parts,
        None if alone else numbers(places, device),
        None if in_order else numbers(which, device),
        None if in_order else numbers([place - first for place in at], device),
        steps.unfold(0, wide, 1),
    )


def packed(rows: Sequence[Reading], layout: Layout) -> Tensor:
    """What all rows are given, packed; numbers go to the device all at once."""
    if any(isinstance(row.ids, Tensor) for row in rows):
        return layout.pack([row.given for row in rows])
    tokens = numbers([token for row in rows for token in row.ids], rows[0].kv.device)
    return tokens.view(len(rows), -1) if layout.dense else tokens[None]


def wanted(rows: Sequence[Reading], logits: Tensor) -> list[Tensor]:
    """Logits [R, V] -> of every row what it wants of its own: these, [V], or the likeliest token, int64 [1].

    Both are on the CPU. The likeliest are found all at once. What rows want of one kind comes in one transfer.
    """
    chosen = [number for number, row in enumerate(rows) if row.forbidden]
    best = likeliest(rows, logits) if chosen else None  # before the host waits for anything
    alone = len(chosen) == len(rows)
    found = [logits] * len(rows) if alone else list(logits.cpu().unbind())
    if best is None:
        return found
    tokens = best.cpu().split(1)
    for number in chosen:
        found[number] = tokens[number]
    return found


def likeliest(rows: Sequence[Reading], logits: Tensor) -> Tensor:
    """Logits [R, V] -> the likeliest token of each row of those that are not forbidden, int64 [R], where they lie;
    `NONE` where logits are no numbers.
    """
    if others := [(number, token) for number, row in enumerate(rows) for each in row.forbidden[:1] for token in each]:
        where = tuple(numbers(side, logits.device) for side in zip(*others, strict=True))
        logits.index_put_(where, logits.new_full((), -torch.inf))
    best = logits.argmax(-1)  # of what is no number, if there is any
    broken = logits.gather(1, best[:, None]).isnan()[:, 0]
    return best.masked_fill(broken, NONE)


def _attend(
    row: Reading, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cap: float | None
) -> Tensor:
    """Queries, keys and values [S, *, H] of one row -> what it sees, [S, N H]."""
    end = row.start + len(q)
    remembered = row.kv.of(layer)  # [2, heads of keys, room, H]
    if row.keep:
        remembered[0, :, row.start : end] = k.transpose(0, 1)
        remembered[1, :, row.start : end] = v.transpose(0, 1)
        seen = remembered[:, :, :end]
    else:
        seen = torch.cat([remembered[:, :, : row.start], torch.stack([k, v]).transpose(1, 2)], dim=2)
    keys, values = seen[:, None]  # [1, heads of keys, end, H]
    seen = _seen(q.transpose(0, 1)[None], keys, values, causal=row.causal and mask is None, mask=mask, cap=cap)
    return seen[0].transpose(0, 1).flatten(1)


def _seen_by_ones(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cap: float | None) -> Tensor:
    """`_seen` by rows of one token, whose heads that share keys are as so many tokens: q [R, N, G, H].

    Of an odd number torch's kernel for CPUs rounds by where the memory begins that a thread works in.
    """
    odd = q.shape[2] % 2 == 1 and q.device.type == "cpu"
    if odd and q.dtype != torch.float32:
        return _seen(F.pad(q, (0, 0, 0, 1)), k, v, mask=mask, cap=cap)[:, :, :-1]
    return _seen(q, k, v, mask=mask, cap=cap, products=odd)


def _seen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    cap: float | None = None,
    products: bool = False,
) -> Tensor:
    """Attention of queries [R, N, S, H] to keys and values of as many heads or fewer; what each weighs is bounded by
    `cap` before it is masked. By torch's kernel, or where there is a bound, or `products` are asked for, by two.
    """
    if q.shape[0] * q.shape[1] == 1 and q.device.type == "cpu":  # all threads would share it, and round otherwise
        q, k, v = (part.expand(2, -1, -1, -1) for part in (q, k, v))
        return _seen(q, k, v, causal=causal, mask=mask, cap=cap, products=products)[:1]
    shared = q.shape[1] // k.shape[1]
    if cap is None and not products:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shared > 1)
    if shared > 1:
        k, v = (part.repeat_interleave(shared, 1) for part in (k, v))
    weights = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 / (cap or 1))  # [R, N, S, W]
    if cap is not None:
        weights = cap * evenly(torch.tanh, weights)
    if causal:
        mask = torch.ones(weights.shape[2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else weights + mask
    return weights.softmax(-1, torch.float32).to(v.dtype) @ v


def _mask(row: Reading, window: int | None) -> Tensor | None:
    end = row.start + row.count
    if not row.causal or (row.start == 0 and (window is None or end <= window)):
        return None
    places = torch.arange(end, device=row.kv.device)
    own = places[row.start :, None]
    seen = places[None, :] <= own
    return seen if window is None else seen & (places[None, :] > own - window)
