"""What is known of an unfinished job in memory only: how far it is, who works on it, who watches it.

`server/jobs/book.py` keeps one `Live` per unfinished job. Nothing here is stored: after a restart a job begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from omnimuse.deploy.wire import Previewed, Stepped
from omnimuse.observe.fraction import DRAWING, Fraction
from omnimuse.server.jobs.row import Job
from omnimuse.server.orders.admission import Ticket

News = Stepped | Previewed | Job
"""What a watcher is told: steps, previews, and last the job as it ended."""
BACKLOG = 16
"""News that wait for one slow watcher; older ones are dropped, the last one never."""


class Meter:
    """How far one job is, from its steps; never goes back, even when a worker was lost and the steps begin again."""

    def __init__(self, outputs: int, clock: Callable[[], float]) -> None:
        self._done = [Fraction() for _ in range(outputs)]
        self._clock = clock
        self._began: tuple[float, float] | None = None

    @property
    def fraction(self) -> float:
        """The part of the work that is done, 0 to 1."""
        return sum(each.value for each in self._done) / len(self._done)

    @property
    def percent(self) -> int:
        """0 to 99: only a stored result is 100."""
        return min(99, int(self.fraction * 100 + 1e-9))

    def see(self, step: Stepped) -> None:
        """Take one step into account."""
        told = self._done[step.output].see(step.stage, step.step, step.steps)
        if told and self._began is None:
            self._began = self._clock(), self.fraction

    def seconds_left(self) -> float | None:
        """An estimate, at the pace so far; None while there is no pace."""
        if self._began is None or self.fraction <= self._began[1]:
            return None
        since, before = self._began
        return (self._clock() - since) * (1 - self.fraction) / (self.fraction - before)


class Live:
    """One unfinished job. `deadline` is on the monotonic clock.

    `drawing` is the task that works on it; once `finishing`, its result is being stored and it is not interrupted.
    """

    def __init__(self, job: Job, ticket: Ticket, deadline: float | None, clock: Callable[[], float]) -> None:
        self.job = job
        self.deadline = deadline
        self.meter = Meter(int(job.work.request["params"]["num_outputs_per_prompt"] or 1), clock)
        self.drawing: asyncio.Task[None] | None = None
        self.finishing = False
        self._ticket = ticket
        self._preview: Previewed | None = None
        self._watchers: set[asyncio.Queue[News]] = set()

    def see(self, update: Stepped | Previewed) -> None:
        """Take note of a step or a preview, and pass it on."""
        if isinstance(update, Previewed):
            self._preview = update
        else:
            self.meter.see(update)
            if update.stage == DRAWING:
                self._ticket.reach(update.output, update.stage, update.step)
        self._tell(update)

    def end(self, job: Job, served: bool) -> None:
        """The job is over, or this server does nothing more for it: leave the queue, tell every watcher."""
        self._ticket.close(served)
        self._tell(job)

    def watch(self) -> asyncio.Queue[News]:
        """News from now on, after the latest preview; to be handed back to `unwatch`."""
        queue: asyncio.Queue[News] = asyncio.Queue(BACKLOG)
        if self._preview is not None:
            queue.put_nowait(self._preview)
        self._watchers.add(queue)
        return queue

    def unwatch(self, queue: asyncio.Queue[News]) -> None:
        """No more news for this one."""
        self._watchers.discard(queue)

    def _tell(self, news: News) -> None:
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(news)
