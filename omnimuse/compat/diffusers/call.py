"""One call of a library's pipeline that stands still between its steps, so that the engine can own the time between.

A library runs a pipeline to completion in one call. Here the call has a stack of its own (a greenlet) on the engine's
thread: inside, `park` gives control back; outside, `go_on` lets it run to its next park. No second thread computes, so
torch's modes and its team of workers are those of the engine. Letting go of a parked call unwinds it, `finally` and
all, where it stands; this must happen on the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor


class Call(greenlet):
    """`work`, to be run piece by piece. `total` is how many steps it takes, as far as it has said; 0: nothing yet.

    `latents` are what it showed when it parked last.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(work)
        self.total = 0
        self.latents: Tensor | None = None
        self.result: Any = None

    def go_on(self) -> None:
        """Run to the next park, or to the end; then `dead` is true and `result` is there. Raises what the work does."""
        self.parent = getcurrent()
        came_back = self.switch()
        if self.dead:
            self.latents, self.result = None, came_back


def running() -> Call:
    """The call inside which this is asked."""
    call = getcurrent()
    assert isinstance(call, Call), "the library's pipeline runs outside of a call"
    return call


def inside() -> bool:
    """Whether this is asked inside a call."""
    return isinstance(getcurrent(), Call)


def park(latents: Tensor | None, total: int) -> None:
    """Inside a call: a step is done, `total` in all; stand still until the next `go_on`."""
    _note(latents, total)
    getcurrent().parent.switch()  # no name here may hold the call: it must be gone when those outside let go of it


def _note(latents: Tensor | None, total: int) -> None:
    call = running()
    call.latents, call.total = latents, total or call.total
