"""What is seen while pictures are drawn: a bar on a terminal or in a notebook, plain lines elsewhere, or nothing.

The Python API and the command line make a display and pass it the engine's events; it knows nothing else about the
engine. `Tracker` does the counting; it draws nothing, and its clock is passed in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.observe.fraction import Fraction
from omnimuse.observe.notebook import PREVIEWS, Notebook, notebook

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


PAUSE = 10.0
"""Seconds between lines that tell of nothing that is done."""


class Tracker:
    """How far `requests` requests are, from their events; None: as many as have been seen."""

    def __init__(self, requests: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = requests
        self.ended: set[str] = set()
        self.stage, self.step = "", 0
        self.steps: int | None = 0
        self.clock = clock
        self._first: tuple[float, float] | None = None  # when the first step was done, and the part done by then
        self._outputs: dict[str, dict[int, Fraction]] = {}

    def see(self, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, Done | Failed):
            self.ended.add(event.request_id)
        elif isinstance(event, Progress):
            self.stage, self.step, self.steps = event.stage, event.step, event.steps
            outputs = self._outputs.setdefault(event.request_id, {})
            if outputs.setdefault(event.output, Fraction()).see(event.stage, event.step, event.steps):
                self._first = self._first or (self.clock(), self.fraction)

    @property
    def requests(self) -> int:
        """How many there are in all."""
        return len(self._outputs.keys() | self.ended) if self._requests is None else self._requests

    @property
    def fraction(self) -> float:
        """The part of the work that is done, 0 to 1."""
        under_way = [
            sum(part.value for part in parts.values()) / len(parts)
            for request, parts in self._outputs.items()
            if parts and request not in self.ended
        ]
        return (len(self.ended) + sum(under_way)) / max(1, self.requests)

    @property
    def seconds_left(self) -> float | None:
        """An estimate, at the pace since the first step, before which things were read; None while there is no pace."""
        if self._first is None or not self._first[1] < self.fraction < 1:
            return None
        began, before = self._first
        return (self.clock() - began) * (1 - self.fraction) / (self.fraction - before)

    def line(self) -> str:
        """Such as `denoise 5/8, 2 of 4 done, 3 s left`, or `generate 5` where nobody knows how many there will be."""
        whole = "" if self.steps is None else f"/{self.steps}"
        parts = [self.stage if self.steps == 1 else f"{self.stage} {self.step}{whole}"]
        if self.requests > 1:
            parts.append(f"{len(self.ended)} of {self.requests} done")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Display(Protocol):
    """Something that shows progress: a context manager that is told what happens."""

    def say(self, text: str) -> None:
        """Show what is being done before there are events."""

    def __call__(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(requests: int | None, stream: TextIO, *, quiet: bool = False) -> Display:
    """The display that fits `stream`."""
    if quiet:
        return Silent()
    return Live(Tracker(requests), stream) if stream.isatty() else Lines(Tracker(requests), stream)


class ProgressDisplay:
    """What `Omni.generate` shows by default: in a notebook a bar and looks at what is being made, on a terminal
    (`stream`, stderr) the bar, elsewhere nothing.

    `previews` is every how many steps it wants a look (0: never).
    """

    def __init__(self, requests: int | None = None, stream: TextIO | None = None) -> None:
        stream, show = stream or sys.stderr, notebook()
        self.previews = 0 if show is None else PREVIEWS
        self._shown: Display = (
            display(requests, stream, quiet=not stream.isatty()) if show is None else Notebook(Tracker(requests), show)
        )

    def __enter__(self) -> Display:
        return self._shown.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.__exit__(kind, error, trace)


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def __call__(self, event: Event) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Lines(Silent):
    """Plain lines, for logs: one for every stage, and for every quarter of a long one; among many requests those of
    the first, then one for each that is done, and in between what there is after `PAUSE`.
    """

    def __init__(self, tracker: Tracker, stream: TextIO) -> None:
        self.tracker = tracker
        self._stream = stream
        self._last: tuple[str, int, int] = ("", 0, 0)
        self._said = 0.0

    def say(self, text: str) -> None:
        """One line."""
        print(text, file=self._stream, flush=True)

    def __call__(self, event: Event) -> None:
        self.tracker.see(event)
        if not isinstance(event, Progress):
            return
        part = event.step.bit_length() if event.steps is None else 4 * event.step // event.steps
        now, (*_, done) = (event.stage, part, len(self.tracker.ended)), self._last
        if now == self._last or (now[-1] == done > 0 and self.tracker.clock() < self._said + PAUSE):
            return
        self._last, self._said = now, self.tracker.clock()
        self.say(self.tracker.line())


class Live(Silent):
    """One line with a bar that moves, and goes when the work is done."""

    def __init__(self, tracker: Tracker, stream: TextIO) -> None:
        self.tracker = tracker
        self._stream = stream
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self._stream),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Beside the bar, until the next event."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def __call__(self, event: Event) -> None:
        self.tracker.see(event)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self.tracker.line(), total=1.0, completed=self.tracker.fraction)
