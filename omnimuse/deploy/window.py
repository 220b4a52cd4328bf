"""A stretch of a worker's work, from when it is asked for: for so long, or until requests that came within have ended.

`process.py` records what is computed in one. Several threads tell it what comes and ends.
"""

from __future__ import annotations

from threading import Event, Lock


class Window:
    """Over after so many `seconds`; where it is for so many `requests`, once the first of these have ended."""

    def __init__(self, seconds: float, requests: int = 0) -> None:
        self._seconds, self._awaited = seconds, requests
        self._within, self._over, self._lock = set[str](), Event(), Lock()

    def came(self, request_id: str) -> None:
        """There is a new request."""
        with self._lock:
            if self._awaited:
                self._awaited -= 1
                self._within.add(request_id)

    def ended(self, request_id: str) -> None:
        """A request has ended, however it did."""
        with self._lock:
            if request_id in self._within:
                self._within.remove(request_id)
                if not self._within and not self._awaited:
                    self._over.set()

    def wait(self) -> None:
        """Return when it is over."""
        self._over.wait(self._seconds)
