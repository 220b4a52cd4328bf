"""How a network's weights and work are shared out to ranks, as data: what networks declare and build passes carry out.

A network's plan names its linear layers and norms by patterns (dotted paths, `*` for one piece) and says of each how it
is cut. It holds no numbers: how many heads there are, the attention beside the layer knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """A linear layer of which every rank computes some outputs.

    The outputs are, in this order, `queries` parts with a piece for every query head, `keys` parts with one for every
    key head, and `others` equal parts of what remains. With `gather` every rank is given all outputs.
    """

    queries: int = 0
    keys: int = 0
    others: int = 0
    gather: bool = False


@dataclass(frozen=True)
class Rows:
    """A linear layer whose inputs are shared out, as the outputs of `Columns` before it are; its outputs are sums of
    all ranks, the bias added once. One that is not `summed` has no bias, and some `Total` behind it adds up.
    """

    queries: int = 0
    keys: int = 0
    others: int = 0
    summed: bool = True


@dataclass(frozen=True)
class Widths:
    """A norm over all heads together: every rank has those of its heads, and the squares are summed over all ranks."""

    queries: int = 0
    keys: int = 0


@dataclass(frozen=True)
class Total:
    """A place, an identity on one rank, at which what all ranks have made so far is added up."""


Cutting = Columns | Rows | Widths | Total

Span = tuple[int, int]
"""From where to where."""


@dataclass(frozen=True)
class Slices:
    """What one rank holds of a tensor: `spans` of the `whole` places along dimension `dim`, laid end to end."""

    dim: int
    whole: int
    spans: tuple[Span, ...]

    @property
    def held(self) -> int:
        """How many places that are."""
        return sum(stop - start for start, stop in self.spans)

    def within(self, start: int, stop: int) -> Slices:
        """What is held of this, from `start` to `stop` as it lies here."""
        spans: list[Span] = []
        place = 0
        for first, last in self.spans:
            low, high = max(start, place), min(stop, place + last - first)
            if low < high:
                spans.append((first + low - place, first + high - place))
            place += last - first
        return Slices(self.dim, self.whole, tuple(spans))

    def meet(self, start: int, stop: int) -> Iterator[tuple[Span, int]]:
        """What of the places from `start` to `stop` is held: spans counted from `start`, and where each lies here."""
        place = 0
        for first, last in self.spans:
            low, high = max(first, start), min(last, stop)
            if low < high:
                yield (low - start, high - start), place + low - first
            place += last - first


@dataclass(frozen=True)
class Cut:
    """Part number `at` of `of` parts."""

    at: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.at < self.of:
            raise ValueError(f"there is no part {self.at} of {self.of}; use 0 to {self.of - 1}")

    def span(self, count: int) -> Span:
        """Which of `count` things this part has: as many as the others, or one more while they do not divide."""
        least, more = divmod(count, self.of)
        start = self.at * least + min(self.at, more)
        return start, start + least + (self.at < more)

    def share(self, count: int) -> int:
        """How many of `count` things this part has."""
        start, stop = self.span(count)
        return stop - start


@dataclass(frozen=True)
class Grouped:
    """The heads of an attention: so many `queries`, of which equally many share each of the `keys`."""

    queries: int
    keys: int

    def spans(self, part: Cut) -> tuple[Span, Span]:
        """Which queries and which keys a part has; queries stay with the keys that they share.

        Of more parts than keys several have the same ones, and each of these some of their queries.
        """
        shared = self.queries // self.keys
        if part.of <= self.keys:
            start, stop = part.span(self.keys)
            return (start * shared, stop * shared), (start, stop)
        groups = [Cut(key, self.keys).span(part.of) for key in range(self.keys)]
        key, (first, end) = next((key, group) for key, group in enumerate(groups) if part.at < group[1])
        start, stop = Cut(part.at - first, end - first).span(shared)
        return (key * shared + start, key * shared + stop), (key, key + 1)

    def fewest(self, parts: int) -> int:
        """How many queries the part has that has fewest of them."""
        spans = (self.spans(Cut(at, parts))[0] for at in range(parts))
        return min(stop - start for start, stop in spans)
