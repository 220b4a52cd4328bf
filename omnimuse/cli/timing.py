"""What a command spends its time on: seconds by name, and a recording of what is computed. And the options of commands
that say something aloud, or talk, by which it is told.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from omnimuse.cli.job import Shown
from omnimuse.cli.plot import KINDS, check_place


class Recorder(Protocol):
    """What records, such as `omnimuse.Omni`."""

    def recording(self, path: Path) -> AbstractContextManager[None]:
        """What is computed in a `with` block, recorded into that file."""


def add_told(parser: argparse.ArgumentParser) -> None:
    """How it is told where the time went."""
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    shown.add_argument("--plot", type=Path, metavar="FILE", help=f"draw where its time went ({', '.join(KINDS)})")
    shown.add_argument(
        "--profile", type=Path, metavar="FILE.json.gz", help="record every operation, for Perfetto; slower meanwhile"
    )


def read_told(args: argparse.Namespace, overwrite: bool = False) -> Shown:
    """What these options ask for; RequestError where a file cannot be written."""
    if args.plot is not None:
        check_place("plot", args.plot, KINDS, overwrite)
    if args.profile is not None:
        check_place("profile", args.profile, (".gz",), overwrite)
    return Shown(as_json=args.json, plot=args.plot, profile=args.profile)


class Clock:
    """Seconds by name: what a job spends its time on."""

    def __init__(self) -> None:
        self._marks = [time.perf_counter()]
        self._names: list[str] = []

    def reach(self, name: str) -> None:
        """`name` is what the time since the last call went into."""
        self._names.append(name)
        self._marks.append(time.perf_counter())

    def seconds(self) -> dict[str, float]:
        """Every part, and the total."""
        parts = zip(self._names, self._marks, self._marks[1:], strict=False)
        spent = {"import": 0.0, "load": 0.0, "draw": 0.0}
        for name, start, end in parts:
            spent[name] = spent.get(name, 0.0) + end - start
        return {**spent, "total": self._marks[-1] - self._marks[0]}


@contextmanager
def recorded(path: Path | None, engine: Recorder, clock: Clock) -> Iterator[None]:
    """What is drawn within goes into a recording at `path`, if there is one; the drawing is timed apart from that."""
    if path is None:
        yield
        return
    with engine.recording(path):
        clock.reach("begin the trace")
        try:
            yield
        finally:
            clock.reach("draw")
    clock.reach("write the trace")
