"""Whose turn it is: few work at once, and tenants who wait are served by how little they have had.

`sandbox` asks. Knows nothing of what the work is. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from omnimuse.core.errors import CapacityError

_FULL = "too many files wait to be read; try again later"
_SOON = 2.0  # seconds


@dataclass
class _Tenant:
    """`used` counts seconds of work; a tenant who comes anew begins where those who are there have least."""

    used: float
    working: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Turns:
    """Lets `together` work at once and `waiting` wait.

    A place goes to the tenant with the least at work, among those to the one who has had the least time. When too many
    wait, the newcomer is refused, or the last in the longest line of a tenant if that one has more than the newcomer.
    """

    def __init__(self, together: int, waiting: int) -> None:
        self._free, self._most = together, waiting
        self._tenants: dict[str, _Tenant] = {}

    @asynccontextmanager
    async def one(self, tenant: str) -> AsyncIterator[None]:
        """A place for `tenant`, kept until the end of the block; CapacityError when too many wait."""
        await self._enter(tenant)
        began = time.monotonic()
        try:
            yield
        finally:
            self._leave(tenant, time.monotonic() - began)

    async def _enter(self, name: str) -> None:
        tenant = self._tenants.setdefault(name, _Tenant(self._least()))
        if self._free:
            self._free -= 1
            tenant.working += 1
            return
        self._make_room(tenant)
        turn = asyncio.get_running_loop().create_future()
        tenant.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # it had just come
                self._leave(name, 0.0)
            elif turn in tenant.waiting:
                tenant.waiting.remove(turn)
            raise

    def _make_room(self, newcomer: _Tenant) -> None:
        self._drop_cancelled()
        if sum(len(tenant.waiting) for tenant in self._tenants.values()) < self._most:
            return
        longest = max(self._tenants.values(), key=lambda tenant: len(tenant.waiting))
        if len(longest.waiting) <= len(newcomer.waiting) + 1:
            raise CapacityError(_FULL, _SOON)
        longest.waiting.pop().set_exception(CapacityError(_FULL, _SOON))

    def _leave(self, name: str, seconds: float) -> None:
        tenant = self._tenants[name]
        tenant.working -= 1
        tenant.used += seconds
        self._free += 1
        self._drop_cancelled()
        waiting = [other for other in self._tenants.values() if other.waiting]
        if waiting:
            chosen = min(waiting, key=lambda other: (other.working, other.used))
            chosen.working += 1
            self._free -= 1
            chosen.waiting.popleft().set_result(None)
        self._forget()

    def _drop_cancelled(self) -> None:
        for tenant in self._tenants.values():
            tenant.waiting = deque(turn for turn in tenant.waiting if not turn.done())

    def _forget(self) -> None:
        """Drop tenants who want nothing and have had no more than those who do."""
        least = self._least()
        for name, tenant in list(self._tenants.items()):
            if not tenant.working and not tenant.waiting and tenant.used <= least:
                del self._tenants[name]

    def _least(self) -> float:
        """The least that a tenant who works or waits has had; if there is none, the most of all."""
        active = [tenant.used for tenant in self._tenants.values() if tenant.working or tenant.waiting]
        return min(active) if active else max((tenant.used for tenant in self._tenants.values()), default=0.0)
