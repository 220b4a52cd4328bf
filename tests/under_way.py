"""What a second device (`tests/second_device.py`) has begun, and the host waits for where it asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from omnimuse.worker.clock import HostClock

SENT, TOLD = "what was sent", "seconds of work"
"""What is asked for when it is collected: how waits for it begin."""


@dataclass(frozen=True)
class Sent:
    """What is on its way from the second device: it may be there or not, so who asks for it waits."""

    tensor: Tensor
    note: Callable[[str], None]

    def here(self) -> bool:
        return False

    def wait(self) -> Tensor:
        self.note(SENT)
        return self.tensor


@dataclass(frozen=True)
class Counted:
    """A stretch of the second device's work, which is known to be over once the host has waited for anything later."""

    length: float
    note: Callable[[str], None]
    waited: Callable[[], int]
    before: int

    def seconds(self) -> float:
        if self.waited() == self.before:
            self.note(TOLD)
        return self.length


class CountedClock:
    """Who asks how long something took waits for its end, as for an event of a device."""

    def __init__(self, note: Callable[[str], None], waited: Callable[[], int]) -> None:
        self._note, self._waited, self._host = note, waited, HostClock()

    def mark(self) -> float:
        return self._host.mark()

    def since(self, mark: float) -> Counted:
        return Counted(self._host.since(mark).length, self._note, self._waited, self._waited())
