"""A try of a request on one life of a worker, and what becomes of it that is no update. No torch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from omnimuse.core.request import Request
from omnimuse.deploy.wire import Update


class Lost(Exception):
    """The life that worked on a request ended; the message says how."""


class Moved(Exception):
    """A request that has not begun is to be placed anew: another worker has nothing to do."""


@dataclass(eq=False)
class Attempt:
    """One try of a request on one life; `updates` ends with Finished, an error, Lost, or Moved.

    It waits `since` its request came, until it has `begun`.
    """

    request: Request
    since: float
    begun: bool = False
    updates: asyncio.Queue[Update | Exception] = field(default_factory=asyncio.Queue)
    abandoned: bool = False
