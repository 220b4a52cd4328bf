"""How long work took where it was done. An accelerator works while the host is long elsewhere, so its events tell.

For the runner: `clock.mark()` before the work, `clock.since(mark)` after it, and `seconds()` of that when the result
has been waited for in any case.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch


class Span(Protocol):
    """A stretch of work, perhaps not over yet."""

    def seconds(self) -> float:
        """How long it took; waits for its end."""
        ...


class Clock(Protocol):
    """Marks moments in the order of the work."""

    def mark(self) -> Any:
        """Now: when all work that was begun so far is done."""
        ...

    def since(self, mark: Any) -> Span:
        """From `mark` to now."""
        ...


def clock_for(device: torch.device) -> Clock:
    """The clock of what `device` does."""
    if device.type == "cpu":
        return HostClock()
    return DeviceClock(partial(torch.Event, device=device, enable_timing=True))


class Elapsed(NamedTuple):
    """A stretch that is over."""

    length: float

    def seconds(self) -> float:
        return self.length


class Share(NamedTuple):
    """One of so many equal parts of a stretch."""

    whole: Span
    parts: int

    def seconds(self) -> float:
        return self.whole.seconds() / self.parts


class Without(NamedTuple):
    """A stretch without `parts` of it, seconds that are told by themselves."""

    whole: Span
    parts: float

    def seconds(self) -> float:
        return max(0.0, self.whole.seconds() - self.parts)


class HostClock:
    """For work that is done when its call returns; `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def since(self, mark: float) -> Elapsed:
        return Elapsed(self._now() - mark)


@dataclass(frozen=True)
class Between:
    """From one event of a device to another."""

    start: torch.Event
    end: torch.Event

    def seconds(self) -> float:
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


class DeviceClock:
    """For work that a call only begins. `event` makes events of the device that can tell the time."""

    def __init__(self, event: Callable[[], torch.Event]) -> None:
        self._event = event

    def mark(self) -> torch.Event:
        event = self._event()
        event.record()
        return event

    def since(self, mark: torch.Event) -> Between:
        return Between(mark, self.mark())
