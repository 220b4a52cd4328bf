"""Recordings of what an engine computes with: every operation, its time and where it was called from.

Started and ended on the thread that computes, on every rank at once (`engine/recordings.py`); the file opens in a
browser's tracing page or in Perfetto.
"""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from omnimuse.core.environment import Environment
from omnimuse.core.errors import CapacityError, refused
from omnimuse.observe.labels import OTHER, STAGES

log = logging.getLogger(__name__)

ONE = threading.Lock()
"""Torch records for one thread of a process at a time: who has this."""
LASTING = threading.Lock()
"""Held, beside that, while a `Recording` lasts: nobody waits for its end."""
BUSY = "another engine of this process is being recorded, and torch records one at a time; end that recording first"
BEGINS, BETWEEN = re.compile(r'"traceEvents":\s*\['), re.compile(r"[\s,]*")
BASE = re.compile(r'"baseTimeNanoseconds":\s*(\d+)')
MEMORY = "[memory]"
LAST, PIECE = 64, 2**20
"""Bytes at the end of a trace that are looked at, and characters that are compressed at once."""


class Recording:
    """What is computed on this thread, and on its accelerator, between `start` and `write`."""

    def __init__(self) -> None:
        Environment.hush_recordings()
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, profile_memory=True)

    def start(self) -> None:
        """Record from now on; everything takes a little longer. CapacityError while another one lasts."""
        if not LASTING.acquire(blocking=False):
            raise CapacityError(BUSY)
        ONE.acquire()  # who counts what something takes ends soon
        try:
            self._profile.start()
        except BaseException:
            self._let_go()
            raise

    def stop(self) -> None:
        """Record nothing more, on the thread that began."""
        try:
            self._profile.stop()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        ONE.release()
        LASTING.release()

    def write(self, path: Path, told: Path) -> None:
        """End, and write a Chrome trace as torch has it. The error of a disk that refuses names `told`."""
        self.stop()
        with _whole(path, told) as part:
            self._profile.export_chrome_trace(str(part))
            with part.open("rb+") as file:
                file.seek(-min(LAST, file.seek(0, os.SEEK_END)), os.SEEK_END)
                ends = file.read().rstrip().endswith(b"}")
                file.write(b"\n" * LAST)  # torch does not say that a disk was full: this does
            if not ends:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))


def most_recorded(work: Callable[[], object]) -> dict[str, int] | None:
    """The bytes that torch allocates on the CPU at most while it does `work`, over those that there were before, by the
    label of the stage that allocates them; None while this thread is recorded, or another for as long as somebody
    wants, and where there is no disk to write a trace to.
    """
    try:
        folder = TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as problem:  # before anything is done in vain
        _refuse(problem)
        return None
    with folder as name:
        if recorded() or (trace := _traced(work)) is None:
            return None
        try:
            events = _exported(trace, Path(name))["traceEvents"]
        except OSError as problem:
            _refuse(problem)
            return None
    marks = [each for each in events if each.get("cat") == "user_annotation" and _of_stages(each["name"])]
    ends = [(float(each["ts"]) + float(each["dur"]), "") for each in marks]
    bounds = [(float(each["ts"]), each["name"]) for each in marks] + ends
    happened = [*bounds, *allocated(events)]
    most, held, label = {OTHER: 0}, 0, OTHER
    for _, what in sorted(happened, key=lambda each: each[0]):
        if isinstance(what, str):
            label = what or OTHER
        else:
            held += what
        most[label] = max(most.get(label, 0), held)
    return most


class Counter(Protocol):
    """What an allocator counts of a device's memory, in bytes."""

    def now(self) -> int:
        """Those that there are."""
        ...

    def most(self) -> int:
        """Those that there were at most since `forget`, or at all."""
        ...

    def forget(self) -> None:
        """Begin anew with the most."""
        ...


class Watch:
    """What a counter has counted at most while each label was marked, over what there was `before`."""

    def __init__(self, counter: Counter) -> None:
        self.most = {OTHER: 0}
        self._counter, self._label, self._before = counter, OTHER, counter.now()
        counter.forget()

    def note(self) -> None:
        """Look at the counter."""
        found = self._counter.most() - self._before
        self.most[self._label] = max(self.most.get(self._label, 0), found)
        self._counter.forget()

    @contextmanager
    def within(self, label: str) -> Iterator[None]:
        """While this context lasts, what is counted goes by `label`."""
        outside = self._label
        self.note()
        self._label = label
        try:
            yield
        finally:
            self.note()
            self._label = outside


WATCH: ContextVar[Watch | None] = ContextVar("WATCH", default=None)


def most_counted(work: Callable[[], object], counter: Counter) -> dict[str, int]:
    """As `most_recorded`, by a counter, which the host reads without waiting for a device: nothing is recorded."""
    watch = Watch(counter)
    token = WATCH.set(watch)
    try:
        work()
    finally:
        WATCH.reset(token)
    watch.note()
    return watch.most


def recorded_events(work: Callable[[], object]) -> list[dict[str, Any]]:
    """What a trace has of `work`: its operations and marks, and what was allocated. Other threads wait for it.

    CapacityError while another thread is recorded for as long as somebody wants.
    """
    with TemporaryDirectory() as folder:
        if (trace := _traced(work)) is None:
            raise CapacityError(BUSY)
        events: list[dict[str, Any]] = _exported(trace, Path(folder))["traceEvents"]
    return events


def _traced(work: Callable[[], object]) -> profile | None:
    """What was recorded of `work`, when that is done; None, and it is not, while a `Recording` lasts."""
    Environment.hush_recordings()
    while not ONE.acquire(timeout=0.1):
        if LASTING.locked():
            return None
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            work()
    finally:
        ONE.release()
    return trace


def _refuse(problem: Exception) -> None:
    """Nobody tells what is computed, for this reason."""
    log.warning("what is computed cannot be recorded: %s: %s", type(problem).__name__, problem)


def allocated(events: Sequence[dict[str, Any]]) -> list[tuple[float, int]]:
    """What `events` tell of the memory of the CPU: moments, and the bytes that torch took, or gave back: negative."""
    told = (each for each in events if each.get("name") == MEMORY and each["args"]["Device Id"] == -1)
    return [(float(each["ts"]), int(each["args"]["Bytes"])) for each in told]


def _of_stages(mark: str) -> bool:
    """Whether that is what a mark of stages says, perhaps of several in one tick."""
    return STAGES.issuperset(mark.split(" and "))


class Recorder:
    """Makes recordings, one at a time."""

    def __init__(self) -> None:
        self._recording: Recording | None = None

    def start(self) -> None:
        """Begin one; one that was never written is dropped."""
        self.drop()
        recording = Recording()
        recording.start()
        self._recording = recording

    def drop(self) -> None:
        """End one that nobody wants any more, if there is one."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.stop()

    def write(self, path: Path, rank: int = 0) -> None:
        """End it, and write it as the part of that rank of what will be at `path`; nothing where none was begun. What
        an earlier one has left there goes in any case.
        """
        recording, self._recording = self._recording, None
        try:
            part_of(path, rank).unlink(missing_ok=True)
        finally:
            if recording is not None:
                recording.write(part_of(path, rank), path)

    def try_to(self, work: Callable[[], None]) -> None:
        """One of the above, because another rank wants it: what goes wrong is told in the log, and ends nothing."""
        try:
            work()
        except (CapacityError, OSError, RuntimeError, ValueError) as problem:
            log.warning("this rank could not be recorded: %s: %s", type(problem).__name__, problem)


def marked(label: str) -> AbstractContextManager[None]:
    """While this context lasts, a recording of this thread has `label`, and what is counted on it goes by that; nothing
    where nobody does either.
    """
    if (watch := WATCH.get()) is not None and _of_stages(label):
        return watch.within(label)
    return record_function(label) if recorded() else nullcontext()


def recorded() -> bool:
    """Whether this thread is recorded."""
    return torch.autograd._profiler_enabled()


def part_of(path: Path, rank: int) -> Path:
    """Where a rank writes its own part, not compressed, of the recording that will be at `path`."""
    return path.with_name(f"rank{rank}-{path.name.removesuffix('.gz')}")


def merge(parts: Sequence[Path], into: Path) -> None:
    """One trace, compressed, of those that the ranks wrote, in the order of the ranks, with a line for the memory that
    is allocated on each device; `parts` are removed. Whose part lacks is said in the log and in the trace.

    A process of a trace is called by its rank, and keeps nothing in common with those of other ranks. Takes long for
    many events, and never holds up other threads for long.
    """
    there = {rank: path for rank, path in enumerate(parts) if path.exists()}
    if not there:
        raise FileNotFoundError(errno.ENOENT, "no rank has written its part of it", str(into))
    lost = [f"rank {rank}" for rank in range(len(parts)) if rank not in there]
    try:
        with _whole(into, into) as whole, gzip.open(whole, "wt", compresslevel=4, encoding="utf-8") as file:
            for piece in _alone(there[0]) if len(parts) == 1 else _together(there, len(parts), lost):
                file.write(piece)
    finally:
        for path in parts:
            path.unlink(missing_ok=True)
    if lost:
        log.warning("the recording %s has nothing of %s, whose log says why", into, ", ".join(lost))


def _exported(recorded: profile, folder: Path) -> dict[str, Any]:
    """What torch writes of it; by the name of a compressed file it would compress each line by itself, in Python.
    OSError where the disk of `folder` refuses.
    """
    path = folder / "trace.json"
    recorded.export_chrome_trace(str(path))
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as problem:  # torch says nothing of a disk that takes a part of it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from problem
    return content


def _alone(path: Path) -> Iterator[str]:
    """The text of one trace, and points of lines for memory: nothing else in it is read."""
    text, decode = path.read_text("utf-8", "replace"), json.JSONDecoder().raw_decode
    start, name = _start(text, path), f'"name": "{MEMORY}"'
    yield text[:start]
    at = text.find(name, start)
    while at >= 0:
        event, end = decode(text, text.rindex("{", start, at))
        yield f"{json.dumps(_counter(event))},\n"
        at = text.find(name, end)
    for piece in range(start, len(text), PIECE):
        yield text[piece : piece + PIECE]


def _together(there: Mapping[int, Path], ranks: int, lost: Sequence[str]) -> Iterator[str]:
    """The text of one trace that has the events of several, and what else the first has."""
    texts, decode = {rank: path.read_text("utf-8", "replace") for rank, path in there.items()}, json.JSONDecoder()
    bases = {rank: int(found[-1]) if (found := BASE.findall(text)) else 0 for rank, text in texts.items()}
    first, before, rest = min(texts), "", ""
    for rank, text in texts.items():
        at, numbers = _start(text, there[rank]), dict[Any, int]()
        if rank == first:
            yield text[:at].replace("{", f'{{"missing": {json.dumps(lost)}, ', 1) if lost else text[:at]
        while text[at] != "]":
            event, end = decode.raw_decode(text, at)
            at = _next(text, end)
            for each in (event, _counter(event)) if event.get("name") == MEMORY else (event,):
                made = _of_rank(rank, ranks, each, (bases[rank] - bases[first]) / 1000, numbers)
                yield f"{before}{json.dumps(made)}"
                before = ",\n"
        rest = rest or text[at:]
    yield rest


def _start(text: str, path: Path) -> int:
    """Where in a trace its first event begins; ValueError without one."""
    if (found := BEGINS.search(text)) is None:
        raise ValueError(f"{path} is no trace")
    return _next(text, found.end())


def _next(text: str, at: int) -> int:
    """Where what is between two events ends."""
    found = BETWEEN.match(text, at)
    return at if found is None else found.end()


@contextmanager
def _whole(path: Path, told: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which is `path` when the block has ended: whole, or not at all. Missing folders
    are made; the error of a disk that refuses names `told`.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(path)
    except OSError as problem:
        raise refused(problem, told) from problem
    finally:
        part.unlink(missing_ok=True)


def _counter(event: dict[str, Any]) -> dict[str, Any]:
    """What an event of the allocator says of its device, as a point of a line that viewers draw."""
    told = event["args"]
    name = "memory of the CPU" if told["Device Type"] == 0 else f"memory of device {told['Device Id']}"
    counted = {"allocated bytes": told["Total Allocated"]}
    return {"ph": "C", "name": name, "pid": event["pid"], "ts": event["ts"], "args": counted}


def _of_rank(rank: int, ranks: int, event: Mapping[str, Any], later: float, numbers: dict[Any, int]) -> dict[str, Any]:
    """An event in `numbers` that no other rank uses, and so many microseconds later."""
    made = dict(event)
    for name in ("pid", "id"):  # of processes, and of arrows between events
        if name in event:
            made[name] = rank + ranks * numbers.setdefault((name, event[name]), len(numbers))
    if "ts" in event:
        made["ts"] = event["ts"] + later
    if event.get("ph") == "M" and event.get("name") == "process_name":
        made["args"] = {"name": f"rank {rank}: {event['args']['name']}"}
    return made
