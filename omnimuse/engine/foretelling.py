"""What a request takes, foretold by two small ones of its kind: they are drawn alone, just before it would begin.

What the widest layer takes (`worker/room.py`) is a bound from below: of a small network's picture, the decoder takes a
hundred times as much. So where a request might not fit, by a guess that is far too high, two that are smaller
(`extents.py`) are drawn and watched, and a straight line through both tells what its own size takes at the least, for
each kind of stage its own: what decodes tiles takes much and grows little, and what denoises may overtake it
(`docs/performance.md` has how well).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from omnimuse.core.amounts import told_bytes
from omnimuse.core.caches import completed
from omnimuse.core.errors import CapacityError, MemoryShortageError, StorageError
from omnimuse.core.output import Event, Failed
from omnimuse.core.request import Door, Request
from omnimuse.engine.extents import Area, extent_of, frames
from omnimuse.engine.needs import NOTHING, Need
from omnimuse.observe.labels import LABELS, MADE, PICTURE, SEEN, TEXT
from omnimuse.worker.place import most_allocated, tells
from omnimuse.worker.runner import Runner

log = logging.getLogger(__name__)

NUMBERS, LATENTS = 12, 4
"""Bytes of a decoded pixel, three numbers in float32, and of what latents of it there are meanwhile."""
MOST_KINDS = 1024
"""Kinds that are known at once: what clients choose tells them apart, so that there may be any number in time."""
AGAIN = 60.0
"""Seconds after which small ones of a kind are drawn again that could not be just then."""
PASSING = (CapacityError, MemoryShortageError, StorageError)
"""What a request fails with for what others have just then."""
EVER = 2**62
"""More bytes than there ever are."""
BY_ITSELF = frozenset({TEXT, SEEN, PICTURE, MADE, LABELS["encode"]})
"""The labels of what is done for one output at a time, whoever else is in progress."""


class Line(NamedTuple):
    """What two numbers of pixels, samples or frames have taken, in bytes; one more takes no more than `most`."""

    fewer: tuple[int, int]
    more: tuple[int, int]
    most: int = EVER

    def at(self, count: int) -> int:
        """What so many, which are more, take at the least."""
        (fewer, small), (more, large) = self.fewer, self.more
        further, growth = count - more, max(0, large - small)
        return large + min(further * growth // (more - fewer), abs(further) * self.most)


class Known(NamedTuple):
    """What is known of a kind: the `lines` by labels of stages, none where small ones could not be drawn, and the
    bytes that the larger one of these has `remembered`. Where they could not be just then, it is tried `again` from
    that second on.
    """

    lines: Mapping[str, Line]
    remembered: int = 0
    again: float = math.inf


class NotNow(Exception):
    """Small ones could not be drawn, or nobody told what they take, for what may be over soon."""


class Unwanted(Exception):
    """Nobody waits any more for what small ones are drawn for: nothing is learnt of their kind."""


def drawn(last: Event) -> bool:
    """Whether what ended with this event was drawn; NotNow where it fails for what others have."""
    if not isinstance(last, Failed):
        return True
    if isinstance(last.error, PASSING):
        raise NotNow(str(last.error))
    return False


class Foretelling:
    """What requests take, by their kind. `draw` draws one while all others wait, and says whether it was `drawn`;
    the `runner` says what loops that write will remember of one. Of so many `kinds` small ones were drawn, or
    could not be; of those before the latest `MOST_KINDS` nothing is known any more.

    Of what is written before it is drawn, nothing is written but what has to be: what would be remembered is known.
    """

    def __init__(
        self,
        door: Door,
        runner: Runner,
        draw: Callable[[Request], bool],
        clock: Callable[[], float],
    ) -> None:
        self._runner, self._device, self._draw, self._clock = runner, runner.pipeline.ctx.device, draw, clock
        self.extent = extent_of(door.limits, runner.pipeline, completed(door.cache, door.fits))
        self.kinds = 0
        self._known: dict[Hashable, Known] = {}  # read by whoever asks for something, while another kind is learnt

    def doubts(self, request: Request, room: int | None) -> bool:
        """Whether `request` might not fit into `room`, and nothing is known of its kind."""
        return room is not None and self.can_learn(request) and self.extent.guess(request).most > room

    def can_learn(self, request: Request) -> bool:
        """Whether small ones of its kind can be drawn, and were not, or not of late if they could not be just then."""
        known = self._known.get(self._kind(request))
        return (known is None or known.again <= self._clock()) and self.extent.smaller(request) is not None

    def knows(self, request: Request) -> bool:
        """Whether small ones of its kind were drawn."""
        known = self._known.get(self._kind(request))
        return known is not None and bool(known.lines)

    def at_most(self, request: Request, coming: int) -> Need:
        """What one output `needs`, or where nothing is known of its kind, what is guessed far too high."""
        return self.needs(request, coming) if self.knows(request) else self.extent.guess(request)

    def learn(self, request: Request, draw: Callable[[Request], bool] | None = None) -> None:
        """Draw small ones of its kind (by another `draw`); where that cannot be, nothing is foretold of it, where it
        cannot be just now, nothing for a while. Where nobody waits for it any more, that is raised (Unwanted).
        """
        try:
            known = self._tried(request, draw or self._draw)
        except NotNow as problem:
            log.warning("what requests like this one take is not known for %g seconds: %s", AGAIN, problem)
            known = Known({}, again=self._clock() + AGAIN)
        kind = self._kind(request)
        self.kinds += 1
        self._known.pop(kind, None)  # the latest stay
        self._known[kind] = known
        if len(self._known) > MOST_KINDS:
            del self._known[next(iter(self._known))]

    def _tried(self, request: Request, draw: Callable[[Request], bool]) -> Known:
        tried, can = self.extent.smaller(request), tells(self._device)
        if tried is None or can is None:
            return Known({})
        if not can:
            raise NotNow("this thread is recorded")
        if not draw(tried[0]):  # texts are read once; what libraries make with it does not count
            return Known({})
        small, large = (most_allocated(self._device, partial(draw, each)) for each in tried)
        if small is None or large is None:
            raise NotNow("nobody tells what small ones take")
        counts = [self.extent.of(each) for each in tried]
        told = [
            (self.extent.told(each), max(found.values())) for each, found in zip(tried, (small, large), strict=True)
        ]
        log.info("tried: %s", "; ".join(f"{what} takes {told_bytes(found)}" for what, found in told))
        grown = NUMBERS * frames(request) + LATENTS if tried[0].tile else EVER
        return Known(_lines(counts, small, large, grown), self._remembers(tried[1]))

    def takes(self, request: Request, coming: int) -> int:
        """The bytes that one output of `request` takes at the least beside the weights, `coming` ones among them; 0 if
        nothing is known of its kind.
        """
        return self.needs(request, coming).most

    def needs(self, request: Request, coming: int) -> Need:
        """What one takes beside others, and by itself."""
        if not (found := self.by_stage(request)):
            return NOTHING
        remembered = self._known[self._kind(request)].remembered
        unwritten = max(0, self._remembers(request) - remembered) if isinstance(self.extent, Area) else 0
        shared = max((size for name, size in found.items() if name not in BY_ITSELF), default=0)
        beside, most = (max(0, size + unwritten - coming) for size in (shared, max(found.values())))
        return Need(beside, most - beside)

    def by_stage(self, request: Request) -> dict[str, int]:
        """The bytes that each kind of stage takes of one, by label; nothing, where nothing is known of its kind."""
        known = self._known.get(self._kind(request), Known({}))
        return {name: line.at(self.extent.of(request)) for name, line in known.lines.items()}

    def _remembers(self, request: Request) -> int:
        """What loops that write will remember of one, in bytes."""
        return self._runner.remembers(request)[0]

    def _kind(self, request: Request) -> Hashable:
        """What of a request, besides how large it is, says what it takes."""
        p = request.params
        shown = len(request.images), len(request.videos), len(request.sounds), request.region is None, *_seen(request)
        tile, sizing = self.extent.tile(request), repr(request.extra.sizing)
        cached = self.extent.cached(request)
        return p.num_frames, p.output_type == "latent", tile, request.branches, shown, sizing, cached


def _seen(request: Request) -> tuple[int, int]:
    """The pixels, and the bytes of sound, that are shown: to the next power of two, as networks may be shown things in
    their own sizes, and what small things take says nothing of large ones.
    """
    pictures = sum(each.width * each.height for each in request.images)
    frames = sum(each.width * each.height * len(each.frames) for each in request.videos)
    return (pictures + frames - 1).bit_length(), (sum(len(each.pcm) for each in request.sounds) - 1).bit_length()


def _lines(counts: Sequence[int], small: Mapping[str, int], large: Mapping[str, int], grown: int) -> dict[str, Line]:
    """One for each kind of stage. Where tiles are decoded, one more takes no more than `grown`: all else that one more
    tile seems to take is that of another size, which is convolved in another way. What encodes has no tiles.
    """
    fewer, more = counts
    most = {MADE: grown}
    names = {*small, *large}
    return {name: Line((fewer, small.get(name, 0)), (more, large.get(name, 0)), most.get(name, EVER)) for name in names}
