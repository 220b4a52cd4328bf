"""Parts that give a token the same bits in any company: products of fixed heights, activations of whole vectors.

A build pass puts them in the place of a network's own when the tier is "invariant". A matrix library picks its kernel,
and so its order of additions, by the number of rows; an elementwise kernel computes what is left over at the end of a
thread's share in another way than the rest. Here a product is cut into tiles of a few fixed heights, each of which was
tried on this machine, and an activation never leaves anything over.

Letters: T tokens of all rows together, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import lcm
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.layers.kernels import Gated

HEIGHTS = (512, 256, 128, 64, 32, 16, 8)  # tall tiles are fast, short ones leave little to pad
BETWEEN = (448, 384, 320, 224, 192, 160, 112, 96, 80, 56, 48, 40, 24)
"""Heights for small weights besides: most products are one call then, whose overhead large ones do not feel. For large
ones where no other height will do, as with three threads, which share rows out.
"""
SMALL = 2**20  # numbers in weights
ALIGNMENT = 64  # bytes; matrix libraries round as the alignment has it
SHARE = 32768  # elements that torch gives a thread at least (at::internal::GRAIN_SIZE)
PIECE = 2**16  # numbers to try products with that are made at a time
ALONE = 16384  # elements up to which no function shares them out; of more, GELU gives each thread as many as another
LANES = 64  # elements; a multiple of what every kernel takes at once


class Weighing(Protocol):
    """A layer with weights [N, K], and perhaps a bias [N]."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


class SteadyLinear(nn.Module):
    """`nn.Linear`, by the same names, in tiles whose heights are some of `heights` (tallest first)."""

    def __init__(self, linear: Weighing, heights: Sequence[int]) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.heights = tuple(heights)

    def forward(self, x: Tensor) -> Tensor:
        return self.made(x, self.bias)

    def made(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product, and `bias` added to it."""
        return tiled(x, self.weight, bias, self.heights)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, heights={self.heights}"


class Product(nn.Module):
    """A convolution whose kernel is what a token is made of, as one product of all tokens of a row; in tiles, where
    `heights` were tried.
    """

    weight: Tensor
    bias: Tensor | None
    heights: tuple[int, ...] = ()

    def product(self, tokens: Tensor) -> Tensor:
        """tokens [T, K] -> [T, N]."""
        weight = self.weight.flatten(1)
        return tiled(tokens, weight, self.bias, self.heights) if self.heights else F.linear(tokens, weight, self.bias)


class Product1d(Product, nn.Conv1d):
    """Of one token."""


class Product2d(Product, nn.Conv2d):
    """Of patches of a picture."""


class Product3d(Product, nn.Conv3d):
    """Of patches of a video."""


class SteadyActivation(nn.Module):
    """An elementwise module, computed so that an element does not depend on where it lies in its tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return evenly(self.inner, x)


class SteadyGated(Gated):
    """`Gated` of which the same is true."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return evenly(F.silu, gate).mul_(up)


PIECES = 8
"""In which what was copied is computed, so that it takes little more memory than the copy."""


def evenly(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the elementwise `function` makes of `x`, in new memory, whole vectors at a time."""
    if not x.is_contiguous():  # of a part of wider rows torch computes the end of each otherwise, as threads share it
        made = x.contiguous().view(-1)
        for piece in made.split(LANES * -(-x.numel() // (PIECES * LANES)) or 1):
            piece.copy_(evenly(function, piece))
        return made.view(x.shape)
    whole = whole_vectors(x.numel(), torch.get_num_threads())
    if whole == x.numel():
        return function(x)
    flat = x.view(-1)
    rest = x.numel() - whole
    padded = F.pad(flat[whole:], (0, -rest % LANES))
    return torch.cat([function(flat[:whole]), evenly(function, padded)[:rest]]).view(x.shape)


def tiled(x: Tensor, weight: Tensor, bias: Tensor | None, heights: Sequence[int]) -> Tensor:
    """x [..., K] times weight [N, K], plus bias, in tiles of these heights."""
    tokens = x.reshape(-1, x.shape[-1])  # [T, K]
    cuts = places(len(tokens), tuple(heights))
    if len(cuts) == 1:
        return _whole(tokens, weight, bias, cuts[0]).view(*x.shape[:-1], len(weight))
    out = tokens.new_empty(sum(cuts), len(weight))  # [T rounded up, N]
    start = 0
    for height in cuts:
        tile = tokens[start : start + height]
        if len(tile) < height:
            tile = F.pad(tile, (0, 0, 0, height - len(tile)))
        product(tile, weight, bias, out[start : start + height])
        start += height
    return out[: len(tokens)].view(*x.shape[:-1], len(weight))


def _whole(tokens: Tensor, weight: Tensor, bias: Tensor | None, height: int) -> Tensor:
    """The products of all tokens, in one tile."""
    count = len(tokens)
    if count < height:
        tokens = F.pad(tokens, (0, 0, 0, height - count))
    elif tokens.data_ptr() % ALIGNMENT:
        tokens = tokens.clone()
    made = torch.mm(tokens, weight.t()) if bias is None else torch.addmm(bias, tokens, weight.t())
    return made[:count]


@lru_cache(maxsize=4096)
def places(count: int, heights: tuple[int, ...]) -> tuple[int, ...]:
    """The heights of the tiles of `count` rows; remembered, as networks ask for the same again and again."""
    return tuple(cut(count, heights))


def cut(count: int, heights: Sequence[int]) -> Iterator[int]:
    """Heights of tiles, tallest first, that cover `count` rows; only the last one reaches beyond them, by few rows."""
    while count > 0:
        beyond = [height for height in heights if 0 <= height - count < heights[-1]]
        height = beyond[-1] if beyond else next(height for height in heights if height < count)
        yield height
        count -= height


def product(tile: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """tile [H, K] times weight [N, K], plus bias, into out [H, N]; from and to aligned memory."""
    if tile.data_ptr() % ALIGNMENT:
        tile = tile.clone()
    place = torch.empty_like(out) if out.data_ptr() % ALIGNMENT else out
    if bias is None:
        torch.mm(tile, weight.t(), out=place)
    else:
        torch.addmm(bias, tile, weight.t(), out=place)
    if place is not out:
        out.copy_(place)


def whole_vectors(count: int, threads: int) -> int:
    """The most of `count` elements that torch shares out among threads without leaving any a broken vector."""
    if count <= ALONE:
        return count // LANES * LANES
    most = min(threads, -(-count // SHARE))
    for parts in (most, max(1, most - 1)):  # the latter: one thread fewer takes part
        unit = LANES * lcm(parts, threads)
        whole = min(count, parts * SHARE if parts < threads else count) // unit * unit
        if whole and min(threads, -(-whole // SHARE)) == parts:
            return whole
    return ALONE


def steady_heights(weight: Tensor, bias: Tensor | None, room: Tensor | None = None) -> tuple[int, ...]:
    """Those of our heights at which products with `weight` give equal rows equal bits, wherever they lie.

    They and their outcome lie in `room`, uint8, if that is given: in the first `tried_bytes` of it.
    """
    tried = HEIGHTS if weight.numel() > SMALL else sorted((*HEIGHTS, *BETWEEN), reverse=True)
    outputs, inputs = weight.shape
    size = tried_bytes(outputs, inputs, weight.dtype)
    room = weight.new_empty(size, dtype=torch.uint8) if room is None else room[:size]
    tile, made = room.view(weight.dtype).split((HEIGHTS[0] * inputs, HEIGHTS[0] * outputs))
    rows, made = tile.view(-1, inputs).copy_(trial_row(inputs)), made.view(-1, outputs)

    def multiply(tile: Tensor) -> Tensor:
        product(tile, weight, bias, made[: len(tile)])
        return made[: len(tile)]

    return agreeing(rows, tried, multiply) or agreeing(rows, BETWEEN, multiply)


def tried_bytes(outputs: int, inputs: int, dtype: torch.dtype) -> int:
    """What the tallest tile and its outcome take."""
    return HEIGHTS[0] * (inputs + outputs) * dtype.itemsize


def steady_row(weight: Tensor, bias: Tensor | None, heights: Sequence[int]) -> Tensor | None:
    """What every row is that products with `weight` make of tiles of equal rows, at all of `heights`; None if any row
    differs.
    """
    rows, first = equal_rows(weight, heights[0]), None
    for height in heights:
        out = _made(rows[:height], weight, bias)
        first = out[0].clone() if first is None else first
        if not bool((out == first).all()):
            return None
    return first


def equal_rows(weight: Tensor, height: int) -> Tensor:
    """So many equal rows to try products with `weight` with, in its format."""
    return trial_row(weight.shape[1]).to(weight).expand(height, -1).contiguous()


def _made(tile: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = tile.new_empty(len(tile), len(weight))
    product(tile, weight, bias, out)
    return out


def agreeing(rows: Tensor, heights: Sequence[int], multiply: Callable[[Tensor], Tensor]) -> tuple[int, ...]:
    """Those of `heights`, tallest first, at which `multiply` gives equal rows equal bits; `rows` are as many of them.

    Tried here and now: a tile of equal rows must have equal rows for an outcome, and the same ones at every height.
    The largest set of heights that agree is kept, of equal sets the taller one.
    """
    found: list[tuple[Tensor, list[int]]] = []
    for height in heights:
        out = multiply(rows[:height])
        if not bool((out == out[0]).all()):
            continue
        known = next((together for first, together in found if torch.equal(first, out[0])), None)
        if known is None:
            found.append((out[0].clone(), [height]))
        else:
            known.append(height)
    return max((tuple(together) for _, together in found), key=len, default=())


def trial_row(columns: int) -> Tensor:
    """A row to try products with, float32 [columns].

    With weights whose halves are `twice` the same, its products add up to nothing but what was rounded on the way, and
    that is decided by the order of additions. Of any other sum a narrow format rounds away nearly all that an order
    changes.
    """
    return twice(trial(1, columns), -1.0)[0]


def twice(numbers: Tensor, sign: float = 1.0) -> Tensor:
    """`numbers` [rows, columns]; the second half of each row becomes the first one, turned by a third of it, times
    `sign`: who adds halves apart does not find them equal.
    """
    half = numbers.shape[1] // 2
    first, second, turn = numbers[:, :half], numbers[:, half : 2 * half], half // 3
    second[:, :turn] = first[:, half - turn :]
    second[:, turn:] = first[:, : half - turn]
    second.mul_(sign)
    numbers[:, 2 * half :] = 0
    return numbers


def trial(rows: int, columns: int) -> Tensor:
    """Numbers of both signs and many sizes, float32 [rows, columns]; the same every time."""
    return written(torch.empty(rows, columns))


def written(into: Tensor) -> Tensor:
    """The numbers of `trial`, in the memory and in the format of `into`, and besides in that of a piece."""
    flat = into.view(-1)
    for start in range(0, len(flat), PIECE):
        piece = flat[start : start + PIECE]
        piece.copy_(torch.arange(start + 1, start + len(piece) + 1, dtype=torch.float32).mul_(0.7).sin_())
    return into
