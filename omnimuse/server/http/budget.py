"""What requests may take together before anybody has looked at them: bytes of bodies in memory, requests a minute.

The edge asks, once it knows the tenant and before it reads a body. Plain bookkeeping on one event loop.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from omnimuse.server.errors import refusal

FREE = 64 * 1024
"""Bytes of a body that are not counted: as many as a connection may hold anyway."""


class Bodies:
    """The bytes of all bodies in memory: at most `most`, and `each` of one tenant."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return sum(self._held.values())

    def lease(self, tenant: str) -> Lease:
        """What one request of `tenant` holds: nothing yet."""
        return Lease(self, tenant)

    def take(self, tenant: str, size: int) -> None:
        """`size` bytes more (or fewer, below 0) for `tenant`; ApiError 429 when there is no room."""
        if size > 0 and (self.held + size > self._most or self._held[tenant] + size > self._each):
            raise refusal("queue_full", "the server is reading as much as it can hold; send it again soon", None, 1.0)
        self._held[tenant] += size
        if not self._held[tenant]:
            del self._held[tenant]


class Lease:
    """The bytes that one request holds. Close it when they are gone."""

    def __init__(self, bodies: Bodies, tenant: str) -> None:
        self._bodies, self._tenant = bodies, tenant
        self._size = 0
        self._closed = False

    def grow(self, to: int) -> None:
        """Hold at least `to` bytes; ApiError 429 when there is no room for them."""
        if self._closed or to <= FREE or to <= self._size:
            return
        self._bodies.take(self._tenant, to - self._size)
        self._size = to

    def add(self, size: int) -> None:
        """Hold `size` bytes more."""
        self.grow(self._size + size)

    def close(self) -> None:
        """Hold nothing any more; closing again does nothing."""
        self._closed = True
        self._bodies.take(self._tenant, -self._size)
        self._size = 0


class Rates:
    """How often a tenant may ask: `per_minute` times, saved up for a minute at most; 0 for as often as it likes."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left: dict[str, tuple[float, float]] = {}

    def ask(self, tenant: str) -> None:
        """Count a request; ApiError 429 for one too many."""
        if not self._per_minute:
            return
        now, pace = self._clock(), self._per_minute / 60
        left, since = self._left.get(tenant, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - since) * pace)
        self._left[tenant] = (left if left < 1 else left - 1, now)
        if left < 1:
            message = f"this key may send {self._per_minute} requests a minute; send fewer"
            raise refusal("rate_limited", message, None, (1 - left) / pace)
