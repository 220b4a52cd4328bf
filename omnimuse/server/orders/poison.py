"""Requests that ended their workers, remembered for a while: the next of their kind is refused before it does so, too.

A worker that dies costs everybody the time in which it loads again. `Admission` asks before it takes a request on;
whoever saw one lose its worker tells. Nothing here outlives the server, and no tenant pays for another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256

from omnimuse.core.errors import PoisonError, WorkerLostError
from omnimuse.core.request import Request

KEEP = 600.0
"""Seconds for which a loss counts."""
TOO_MANY = 2
"""Losses after which a kind of request is refused. One may be bad luck, or another request's doing."""
_MOST = 1000  # kinds that are remembered at once

Kind = tuple[object, ...]


class Poison:
    """Losses by kind of request: its tenant and its shape, where keys tell tenants apart; otherwise its prompt, too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._losses: dict[Kind, list[float]] = {}

    def note(self, request: Request, error: BaseException | None) -> None:
        """`request` ended with `error`; what is no loss of a worker changes nothing."""
        losses = 2 if isinstance(error, PoisonError) else int(isinstance(error, WorkerLostError))
        if losses:
            kind = _kind(request)
            self._losses[kind] = self._losses.pop(kind, [])[-TOO_MANY:] + [self._clock()] * losses
            while len(self._losses) > _MOST:
                self._losses.pop(next(iter(self._losses)))

    def check(self, request: Request) -> None:
        """PoisonError if requests like this one ended too many workers of late."""
        kind, now = _kind(request), self._clock()
        recent = [when for when in self._losses.get(kind, ()) if now - when < KEEP]
        if len(recent) >= TOO_MANY:
            raise PoisonError(
                "requests like this one have just ended their workers, and no other is tried for "
                f"{KEEP - now + recent[-TOO_MANY]:.0f} s; ask for another size, or fewer outputs or steps"
            )


def _kind(request: Request) -> Kind:
    params = request.params
    pictures = tuple((picture.width, picture.height) for picture in request.images)
    given = tuple((video.width, video.height, len(video.frames)) for video in request.videos)
    lasting = (params.num_frames, params.seconds, tuple(sound.seconds for sound in request.sounds))
    shape = (params.width, params.height, lasting, request.evaluations, request.outputs, pictures, given)
    return (request.tenant, *shape, "" if request.tenant else sha256(request.prompt.encode()).digest())
