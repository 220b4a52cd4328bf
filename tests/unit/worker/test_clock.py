"""A clock tells how long work took, on the host by its own time, on a device by events that are read later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from omnimuse.worker.clock import DeviceClock, Elapsed, HostClock, Without, clock_for


class Event:
    """An event of a device on which a millisecond passes between any two."""

    def __init__(self, times: Iterator[int]) -> None:
        self.times = times
        self.waited = False

    def record(self) -> None:
        self.at = next(self.times)

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Event) -> float:
        assert end.waited, "an event that has not happened has no time"
        return float(end.at - self.at)


def test_the_host_measures_what_is_over() -> None:
    clock = clock_for(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    span = clock.since(clock.mark())
    assert span.seconds() == span.seconds() >= 0


def test_a_device_is_not_waited_for_until_somebody_asks() -> None:
    made: list[Any] = []
    times = iter(range(100))

    def event() -> Any:
        made.append(Event(times))
        return made[-1]

    clock = DeviceClock(event)
    start = clock.mark()
    clock.mark()
    span = clock.since(start)
    assert not any(each.waited for each in made)
    assert span.seconds() == 0.002
    assert [each.waited for each in made] == [False, False, True]


def test_what_parts_took_that_are_told_by_themselves_comes_off_a_stretch() -> None:
    assert Without(Elapsed(3.0), 1.0).seconds() == 2.0
    assert Without(Elapsed(3.0), 4.0).seconds() == 0.0, "parts within each other, of which both are told"
