"""The adapters of one engine: read when a request first names them, remembered within bounds, worn by turns.

The context of a pipeline holds one `Adapters`. A state has what it wears (`fetch`), and whoever computes for it does so
inside of `wearing`; the networks know nothing of it. Used by the engine's thread alone, but for `sizes` and `living`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import NamedTuple, NoReturn
from weakref import WeakValueDictionary

from torch import nn

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import AdaptersFullError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.lora.adapter import Adapter, Site, Worn
from omnimuse.lora.linear import Adapted, Rack

Read = Callable[[str, str, Callable[[Adapter], None]], Adapter]
"""(source, component, room) -> the adapter there, for that network if one is named; RequestError for what is none, or
not one for this model. Before its numbers are read, `room` is told how it will be and may refuse it.
"""

Stamp = Callable[[str], str]
"""(source) -> what tells its content of now from any other; RequestError where there is nothing."""


MOST_SIZES = 1024
"""Adapters whose size is known at once, whether they are remembered or not."""

Named = tuple[str, str]
"""A source, or the stamp of one, and the component that it is for."""


class Size(NamedTuple):
    """What an adapter takes in the file of this `stamp`, and its id; `joined` is what compiled layers have of it."""

    stamp: str
    id: str
    bytes: int
    joined: int


Dress = Callable[[Site, Rack], None]
"""(site, rack): from now on the layer at that site wears what is on the rack."""


def adapt(networks: Mapping[str, nn.Module], site: Site, rack: Rack) -> None:
    """Let the layer at `site` in the networks of a pipeline, by component, wear what is on the rack."""
    component, path = site
    network = networks[component]
    layer = network.get_submodule(path)
    if not isinstance(layer, Adapted):
        network.set_submodule(path, Adapted(layer, site, rack))


class Adapters:
    """Adapters by source, for layers that are dressed when one is for them; at most `limit` bytes of them.

    Those that no request in progress wears make room for others, the one that was not asked for the longest first.
    `readings` counts how often a size became known. `alone`: rows with adapters share no forward. `obstacle` says why
    there can be none. Whoever has to know whether something is worn gives the `rack` that it looks at.
    """

    def __init__(
        self,
        dress: Dress,
        read: Read,
        stamp: Stamp,
        *,
        limit: int,
        alone: bool = False,
        obstacle: str = "",
        rack: Rack | None = None,
    ) -> None:
        self.alone = alone
        self.limit = limit
        self._dress = dress
        self._read = read
        self._stamp = stamp
        self._obstacle = obstacle
        self._rack = rack or Rack()
        self._known: dict[Named, tuple[Named, Adapter]] = {}  # the one asked for last is last
        self._sizes: dict[Named, Size] = {}  # also of those that were let go of
        self.readings = 0
        self._living: WeakValueDictionary[Named, Adapter] = WeakValueDictionary()  # by stamp: remembered, or worn

    @staticmethod
    def none(why: str = "this pipeline has no networks of ours") -> Adapters:
        """For a pipeline whose layers wear nothing."""
        return Adapters(
            partial(adapt, {}), lambda source, component, room: _refuse(source), _refuse, limit=0, obstacle=why
        )

    @property
    def nbytes(self) -> int:
        """The memory of all that are remembered or worn."""
        return sum(adapter.nbytes for adapter in self.living)

    @property
    def living(self) -> list[Adapter]:
        """All that are remembered or worn. Any thread may ask."""
        return [adapter for reference in self._living.valuerefs() if (adapter := reference()) is not None]

    def sizes(self, loras: Iterable[Lora] | None) -> dict[str, int]:
        """The bytes of each that takes part, by its id, as far as its file was looked at. Any thread may ask."""
        wanted = ((lora.source, lora.component) for lora in loras or () if lora.scale)
        return {size.id: size.bytes for named in wanted if (size := self._sizes.get(named)) is not None}

    def joined(self, loras: Sequence[Lora] | None) -> int:
        """The bytes that compiled layers take for them besides, while they are worn. Any thread may ask."""
        wanted = ((lora.source, lora.component) for lora in loras or () if lora.scale)
        return sum(size.joined for named in wanted if (size := self._sizes.get(named)) is not None)

    def unread(self, loras: Sequence[Lora] | None) -> list[Lora]:
        """Those that take part of which nobody knows what they take, as their files are now."""
        return [lora for lora in loras or () if lora.scale and not self._sized(lora)]

    def heed(self, loras: Sequence[Lora], sizes: Sequence[int]) -> None:
        """Of each of `loras` whose size is known somebody else has so many bytes: it counts as the larger one."""
        for lora, size in zip(loras, sizes, strict=True):
            named = lora.source, lora.component
            if (known := self._sizes.get(named)) is not None and known.bytes < size:
                self.readings += 1
                self._sizes[named] = known._replace(bytes=size)

    def refuse_too_many(self, loras: Sequence[Lora] | None) -> None:
        """RequestError where those that take part have no room together, as far as is known. Any thread may ask."""
        sizes = self.sizes(lora for lora in loras or () if lora.scale and self._sized(lora))
        if len(sizes) > 1 and (together := sum(sizes.values())) > self.limit:
            raise RequestError(
                f"the {len(sizes)} adapters take {told_bytes(together)} together, and adapters may take "
                f"{told_bytes(self.limit)}; start the engine with more (--lora-memory), or wear fewer at once",
                "loras",
            )

    def _sized(self, lora: Lora) -> bool:
        """Whether the size of it is known as its file is now."""
        known = self._sizes.get((lora.source, lora.component))
        with suppress(RequestError):  # whoever reads it tells why
            return known is not None and known.stamp == self._stamp(lora.source)
        return False

    def within(self, most: int | None, worn: Collection[Adapter]) -> None:
        """Remember no more than `most` bytes (None: as many as ever) beside what is `worn`: the one that was not asked
        for the longest goes first. Of sets that compiled layers have joined as many stay as there is room for then.
        """
        idle = [(named, adapter) for named, (_, adapter) in self._known.items() if adapter not in worn]
        left = sum({adapter.id: adapter.nbytes for _, adapter in idle}.values())
        if most is not None and left > most and idle:
            self._rack.forget()  # who is let go of may be part of it
        for named, adapter in idle:
            if most is None or left <= most:
                break
            del self._known[named]
            left -= 0 if any(each is adapter for _, each in self._known.values()) else adapter.nbytes
        free = self.limit - self.nbytes
        self._rack.keep(free if most is None else min(free, most - left), {each.id for each in worn})

    @property
    def sources(self) -> tuple[str, ...]:
        """What is remembered, the one that was asked for last at the end."""
        return tuple(source for source, _ in self._known)

    def fetch(self, loras: Sequence[Lora] | None) -> tuple[Worn, ...]:
        """What a request wears that asks for `loras`; those at scale 0 it does without.

        RequestError for an adapter that cannot be read or does not fit; AdaptersFullError while others take its memory.
        """
        wanted = [lora for lora in loras or () if lora.scale]
        if wanted and self._obstacle:
            raise RequestError(f"loras cannot be worn: {self._obstacle}", "loras")
        self.refuse_too_many(wanted)
        worn = tuple(Worn(self._get(lora, wanted), lora.scale) for lora in wanted)
        first = dict[str, str]()
        for lora, each in zip(wanted, worn, strict=True):
            other = first.setdefault(each.adapter.id, lora.source)
            if other != lora.source:
                raise RequestError(f"{other} and {lora.source} are one adapter; name it once, with one scale", "loras")
        return worn

    @property
    def worn(self) -> tuple[Worn, ...]:
        """What all layers wear now."""
        return self._rack.worn

    def wearing(self, worn: tuple[Worn, ...]) -> AbstractContextManager[None]:
        """For the length of a `with` block all layers wear `worn`."""
        return nullcontext() if worn == self._rack.worn else self._wearing(worn)

    @contextmanager
    def _wearing(self, worn: tuple[Worn, ...]) -> Iterator[None]:
        before, self._rack.worn = self._rack.worn, worn
        try:
            yield
        finally:
            self._rack.worn = before

    def _get(self, lora: Lora, wanted: Sequence[Lora]) -> Adapter:
        """The adapter that `lora` names, of all that are `wanted` together."""
        named = lora.source, lora.component
        stamp = self._stamp(lora.source), lora.component
        known = self._known.pop(named, None)
        if known is None or known[0] != stamp:
            known = None  # what the file was before is let go of first
            same = self._living.get(stamp)
            known = stamp, same or self._read(*named, partial(self._make_room_for, named, stamp[0], wanted))
            self._size_up(named, stamp[0], known[1])
            for site in known[1].products if same is None else ():
                self._dress(site, self._rack)
            self._living[stamp] = known[1]
        self._known[named] = known
        return known[1]

    def _size_up(self, named: Named, stamp: str, adapter: Adapter) -> None:
        """Know what it takes."""
        size = Size(stamp, adapter.id, adapter.nbytes, self._rack.joined_bytes(adapter.products))
        if (known := self._sizes.get(named)) is not None and known[:2] == size[:2]:
            return
        self.readings += 1
        self._sizes[named] = size
        if len(self._sizes) > MOST_SIZES:
            del self._sizes[next(iter(self._sizes))]

    def _make_room_for(self, named: Named, stamp: str, wanted: Sequence[Lora], planned: Adapter) -> None:
        """Let go of others for what is `planned` and all that are `wanted` with it, whose size is known from now on."""
        self._size_up(named, stamp, planned)
        source, size = named[0], planned.nbytes
        if size > self.limit:
            raise RequestError(
                f"{source} takes {told_bytes(size)}, and adapters may take {told_bytes(self.limit)}; start the "
                "engine with more (--lora-memory), or use an adapter of a lower rank, or without whole differences",
                "loras",
            )
        self.refuse_too_many(wanted)
        while self.nbytes + size > self.limit and self._known:
            del self._known[next(iter(self._known))]
        if (taken := self.nbytes) + size > self.limit:
            raise AdaptersFullError(
                f"{source} takes {told_bytes(size)}, and those of requests in progress {told_bytes(taken)} of "
                f"{told_bytes(self.limit)}; try again when they are done",
                retry_after=1.0,
            )
        self._rack.keep(min(self._rack.room, self.limit - taken - size), self._rack.wanted)


def _refuse(source: str) -> NoReturn:
    raise RequestError(f"{source} cannot be worn: this pipeline has no adapters", "loras")
