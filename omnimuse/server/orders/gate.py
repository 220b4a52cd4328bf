"""The way in for all that is to be drawn: answered at once (`orders/order.py`) or kept as a job (`jobs/book.py`).

Refuses what could not be drawn or stored, and counts why. It queues nothing and knows neither routes nor rows.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from omnimuse.core.errors import CapacityError, EngineDeadError, PoisonError
from omnimuse.core.request import Request
from omnimuse.server.errors import DeadlineUnreachable, refusal
from omnimuse.server.jobs.files import Files
from omnimuse.server.metrics import Metrics
from omnimuse.server.orders.admission import Admission, Ticket
from omnimuse.server.workers import Workers


@dataclass(frozen=True)
class Gate:
    """What decides whether a request may come in."""

    workers: Workers
    files: Files
    admission: Admission
    metrics: Metrics

    async def check(self) -> None:
        """EngineDeadError when no worker will ever be ready, ApiError `storage_full` when the disk nearly is."""
        if self.workers.broken:
            raise EngineDeadError("no worker can be started; ask the server's operator: the reason is in its log")
        if not await asyncio.to_thread(self.files.storage_ok):
            self.metrics.rejected("storage_full")
            raise refusal("storage_full", "the server's disk is nearly full; try again later")

    def check_room(self, tenant: str) -> None:
        """CapacityError while nothing of `tenant` can come in: known before a request is read."""
        try:
            self.admission.check_room(tenant)
        except CapacityError:
            self.metrics.rejected("queue_full")
            raise

    def enter(self, request: Request, patience: float | None = None) -> Ticket:
        """A place in the queue; CapacityError, DeadlineUnreachable or PoisonError when there is none.

        `patience` is how many seconds the client waits for its answer.
        """
        try:
            return self.admission.enter(request, patience)
        except CapacityError:
            self.metrics.rejected("queue_full")
            raise
        except DeadlineUnreachable:
            self.metrics.rejected("deadline_unreachable")
            raise
        except PoisonError:
            self.metrics.rejected("worker_crash")
            raise
