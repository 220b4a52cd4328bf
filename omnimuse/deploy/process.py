"""A worker: one process that holds one engine, or one rank of a group that shares one.

Run as `python -m omnimuse.deploy.process` by `deploy/replica.py`, which writes the settings to its standard input and
keeps that open: its end means that the parent is gone, and then the process is gone, too. The main thread of rank 0
only talks; loading, the engine and the writing of results have threads of their own. torch is imported by the loading
thread, so that the first beat comes at once. Whatever thread dies takes the process with it: it is disposable.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from omnimuse.core.config import Config
from omnimuse.core.errors import CapacityError, EngineDeadError, ModelError, OmnimuseError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.core.machine import resident
from omnimuse.core.output import Chunk, Done, Event, Failed, Preview, Progress, Result
from omnimuse.core.request import Request
from omnimuse.deploy.carry import carry
from omnimuse.deploy.child import Settings, run, talk
from omnimuse.deploy.faults import ALWAYS, Faults
from omnimuse.deploy.folder import PrivateFolder
from omnimuse.deploy.line import Line
from omnimuse.deploy.ranks import Rank, follow
from omnimuse.deploy.warming import warm_up
from omnimuse.deploy.window import Window
from omnimuse.deploy.wire import (
    Beat,
    Cancel,
    Command,
    Ended,
    Finished,
    Form,
    Grown,
    MadeFile,
    MadeText,
    NotStarted,
    Previewed,
    Profile,
    Profiled,
    Ready,
    Remarks,
    Sleep,
    Slept,
    Spelt,
    Stepped,
    Submit,
    TriedOn,
    TryOn,
    unpack,
)
from omnimuse.observe.labels import STEPS, label_of
from omnimuse.worker.find import find

if TYPE_CHECKING:
    from omnimuse.deploy.pools import Pools
    from omnimuse.deploy.results import Spool
    from omnimuse.engine.engine import Engine
    from omnimuse.engine.local import Background

logger = logging.getLogger("omnimuse.deploy.process")  # as `__main__` it would have another name

# -P: a file in the current folder must not stand in for a library
COMMAND = (sys.executable, "-P", "-m", "omnimuse.deploy.process")
FINISHERS = 2
TELL = 0.1  # seconds between two steps of a request that are told, where nobody knows of how many
LOOK = 0.02  # seconds between looks at the memory that this process holds


@dataclass
class Job:
    """A request in this worker; `nan` when a fault says that its values count as NaN. `growing` are pieces of its
    outputs that are being told, `memory` is the most bytes that this process was seen to hold meanwhile, `told` when a
    step of it was told last.
    """

    request: Request
    form: Form
    nan: bool = False
    growing: list[Future[None]] = field(default_factory=list)
    memory: int = 0
    told: float = 0.0


class Worker:
    """What rank 0 does: obeys the front process, and reports through `line`."""

    def __init__(self, settings: Settings, line: Line) -> None:
        self.settings = settings
        self.failed = False
        self._line = line
        self._faults = Faults.read(settings.faults, settings.first)
        self._jobs: dict[str, Job] = {}
        self._ticks, self._memory, self._looked = 0, 0, 0.0
        self._background: Background | Pools | None = None
        self._window = Window(0.0)
        self._spool: Spool | None = None
        self._previewer = ThreadPoolExecutor(1, "omnimuse-preview")
        self._finishers = ThreadPoolExecutor(FINISHERS, "omnimuse-finish")

    # -- the loading thread ----------------------------------------------------------------------------------------

    def load(self) -> None:
        """Build the engine, warm it up, and say that it is ready; or why it cannot be."""
        began = time.monotonic()
        try:
            self._faults.reach("worker.start", 1, ALWAYS)
            background = self._begin()
        except OmnimuseError as error:
            self._give_up(type(error).__name__, str(error))
            return
        self._line.send(Ready(time.monotonic() - began, background.place, background.weights))

    def _begin(self) -> Background | Pools:
        find(self.settings.config)  # what is missing is told before torch is imported
        from omnimuse.deploy.results import Spool

        background = self._engine()
        about = told_of(self.settings.config) | background.place
        self._spool = Spool(self.settings.spool, self.settings.name, about)
        warm_up(background, self.settings.warm_up)
        self._background = background
        return background

    def _engine(self) -> Background | Pools:
        if self.settings.config.deploy.pools:
            from omnimuse.deploy.pools import Pools

            config = self.settings.config
            config = replace(config, host=replace(config.host, processes=self.settings.seats))
            return Pools(config, self._on_engine_death, self.settings.faults)
        from omnimuse.engine.local import Background

        background = Background(partial(build, self.settings), self._on_engine_death, by_token=bool(self._faults))
        background.engine.moved = self._move
        return background

    def _move(self) -> None:
        self._ticks += 1

    def on_thread_death(self, died: threading.ExceptHookArgs) -> None:
        """The hook for exceptions that nobody expected: the process ends, and the front process starts another."""
        traceback.print_exception(died.exc_type, died.exc_value, died.exc_traceback)
        self._give_up("", f"{died.exc_type.__name__}: {died.exc_value}")

    def _on_engine_death(self, error: EngineDeadError) -> None:
        """The process ends, and the front process has its requests drawn elsewhere: they are not to blame."""
        self._give_up("", str(error))

    def _give_up(self, kind: str, message: str) -> None:
        self.failed = True
        if self._background is None:
            self._line.send(NotStarted(kind, message))
        self._line.end()

    # -- the main thread -------------------------------------------------------------------------------------------

    def obey(self, command: Command) -> None:
        """Carry out one command."""
        if self._background is None:  # nobody sends work before Ready
            self._line.end()
        elif isinstance(command, Submit):
            self._submit(command, self._background)
        elif isinstance(command, Cancel):
            self._background.cancel(command.request_id)
        elif isinstance(command, Profile):
            self._begin_profile(command, self._background)
        elif isinstance(command, Sleep):
            work = partial(self._sleep, command.asleep, self._background)
            threading.Thread(target=work, name="omnimuse-sleep", daemon=True).start()
        elif isinstance(command, TryOn):
            work = partial(self._try_on, command.loras, self._background)
            threading.Thread(target=work, name="omnimuse-try-on", daemon=True).start()
        else:
            self._line.end()

    def beat(self) -> Beat:
        """How this worker is; loading counts as being busy."""
        background = self._background
        if background is None:
            return Beat(self._ticks, True, resident())
        busy = bool(self._jobs) and not background.asleep
        told = background.retries, background.company, background.lost, background.away, background.adapters
        return Beat(self._ticks, busy, resident(), *told)

    def close(self) -> None:
        """End the engine; what is in progress is dropped."""
        if self._background is not None:
            self._background.close()

    def _submit(self, command: Submit, background: Background | Pools) -> None:
        from omnimuse.deploy.results import check_form

        request = unpack(command.request, background.door.spec)
        job = self._jobs[request.id] = Job(request, command.form)
        self._window.came(request.id)
        try:
            check_form(request, command.form, background.door.spec.medium)
            background.submit(request, partial(self._hear, job))
        except OmnimuseError as error:
            self._end(request.id, error)

    # -- a thread that waits ---------------------------------------------------------------------------------------

    def _begin_profile(self, command: Profile, background: Background | Pools) -> None:
        """Record from before the next tick on: what comes next is in the window."""
        window = self._window = Window(command.seconds, command.requests)
        try:
            begun = background.between_ticks(background.engine.recordings.begin)
        except OmnimuseError as error:
            self._line.send(Profiled("", str(error), type(error).__name__))
            return
        work = partial(self._profile, window, begun, background)
        threading.Thread(target=work, name="omnimuse-profile", daemon=True).start()

    def _profile(self, window: Window, begun: Future[None], background: Background | Pools) -> None:
        """Record what every rank computes within a window, when that has `begun`; report where the recording is."""
        from omnimuse.observe.profile import merge

        path = self.settings.spool / f"profile-{self.settings.name}-{secrets.token_hex(4)}.json.gz"
        try:
            begun.result()
            window.wait()
            merge(background.between_ticks(partial(background.engine.recordings.end, path)).result(), path)
        except (OmnimuseError, OSError, RuntimeError, ValueError) as error:
            ours = isinstance(error, OmnimuseError)
            self._line.send(Profiled("", str(error), type(error).__name__ if ours else EngineDeadError.__name__))
            return
        self._carry(path, "")
        self._line.send(Profiled(path.name))

    def _carry(self, path: Path, request_id: str) -> None:
        """Where the front has no such disk, send it the file."""
        if self.settings.key:
            carry(path, request_id, self._line.send)

    def _sleep(self, asleep: bool, background: Background | Pools) -> None:
        """Have the weights leave, or come back, and report it."""
        size = 0
        try:
            engine = background.engine
            if asleep:
                size = background.between_ticks(engine.sleep).result()
            else:
                background.between_ticks(engine.wake_up).result()
        except (OmnimuseError, OSError, RuntimeError, ValueError) as error:
            self._line.send(Slept(0, str(error)))
            return
        self._line.send(Slept(size))

    def _try_on(self, loras: Sequence[Lora], background: Background | Pools) -> None:
        """Find out whether requests can wear `loras`, and report it."""
        trouble = None
        try:
            background.try_on(loras)
        except (OmnimuseError, OSError, RuntimeError, ValueError) as error:
            trouble = ended("", error)
        self._line.send(TriedOn(trouble))

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _hear(self, job: Job, event: Event) -> None:
        self._ticks += 1
        if event.request_id not in self._jobs or self.failed:  # it has ended already, or will be drawn elsewhere
            return
        if not isinstance(event, Chunk):  # the step that wrote it is told, too
            job.memory = max(job.memory, self._held())
        match event:
            case Progress():
                if event.steps is not None or self._due(job):
                    self._line.send(Stepped(event.request_id, event.output, event.stage, event.step, event.steps))
                if event.steps is None or event.steps > 1:
                    self._reach_step(job, event.step)
            case Preview():
                self._later(self._previewer, job, partial(self._preview, event))
            case Chunk(medium="text"):
                self._line.send(Spelt(event.request_id, event.output, event.start, event.data))
            case Chunk(medium="audio"):  # of others, only the whole is told
                job.growing.append(self._later(self._previewer, job, partial(self._grow, event)))
            case Done():
                self._later(self._finishers, job, partial(self._finish, job, event.result))
            case Failed():
                self._end(event.request_id, event.error)

    def _due(self, job: Job) -> bool:
        """Whether it is time to tell another token of a request: what it says comes by itself."""
        if (now := time.monotonic()) - job.told < TELL:
            return False
        job.told = now
        return True

    def _held(self) -> int:
        """What this process held a moment ago, in bytes: asked for each token, the system would be asked all day."""
        if (now := time.monotonic()) - self._looked > LOOK:
            self._memory, self._looked = self._holds(), now
        return self._memory

    def _holds(self) -> int:
        """What it holds of its device; where pools compute, of which nobody adds up what they hold, what it has."""
        from omnimuse.engine.local import Background

        return self._background.held if isinstance(self._background, Background) else resident()

    def _reach_step(self, job: Job, step: int) -> None:
        try:
            job.nan |= self._faults.reach("worker.step", step, job.request.prompt)
        except (ModelError, MemoryError) as error:
            assert self._background is not None
            self._end(job.request.id, error)
            self._background.cancel(job.request.id)

    # -- threads that encode ---------------------------------------------------------------------------------------

    def _later(self, pool: ThreadPoolExecutor, job: Job, work: partial[None]) -> Future[None]:
        done = pool.submit(work)
        done.add_done_callback(partial(self._end_if_failed, job.request.id))
        return done

    def _end_if_failed(self, request_id: str, done: Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._end(request_id, error)

    def _preview(self, event: Preview) -> None:
        from omnimuse.deploy.results import preview

        self._line.send(Previewed(event.request_id, event.output, event.step, preview(event.image)))

    def _grow(self, event: Chunk) -> None:
        from omnimuse.deploy.results import pcm

        assert self._background is not None
        sound, samples = self._background.door.limits.sound, event.data
        assert sound is not None
        grown = Grown(event.request_id, event.output, event.start, sound.rate, len(samples), pcm(samples))
        self._line.send(grown)

    def _finish(self, job: Job, result: Result) -> None:
        from omnimuse.engine.local import present

        assert self._background is not None and self._spool is not None
        began, request = time.perf_counter(), job.request
        if job.nan:
            result = replace(result, tensors={name: made * float("nan") for name, made in result.tensors.items()})
        shown = present(result, self._background.door.limits)
        files, texts = list[MadeFile](), spelt(shown)
        for number in range(request.outputs):
            self._faults.reach("worker.encode", number + 1, request.prompt)
            files += self._spool.write(number, request, shown, job.form)
            self._ticks += 1
        for file in files:
            self._carry(self._spool.folder / file.name, request.id)
        wait(job.growing)  # the whole is told after its pieces
        timings = {**result.timings, "encode": time.perf_counter() - began}
        if self._jobs.pop(request.id, None) is not None:
            memory = max(job.memory, self._holds())
            self._line.send(Finished(request.id, files, timings, memory, remarked(result, request.blocks), texts))
            self._window.ended(request.id)

    def _end(self, request_id: str, error: BaseException) -> None:
        """Report that a request ended without a result, unless it has ended already."""
        if self._jobs.pop(request_id, None) is None:
            return
        self._window.ended(request_id)
        if not isinstance(error, OmnimuseError):
            traceback.print_exception(error)
        self._line.send(ended(request_id, error))


def spelt(result: Result) -> tuple[MadeText, ...]:
    """The texts that a model wrote; empty for one that makes something else."""
    if not result.texts_written:
        return ()
    made = zip(result.texts_written, result.written, strict=True)
    return tuple(MadeText(text, len(note.tokens), note.reason, note.reused) for text, note in made)


def remarked(result: Result, within: bool) -> Remarks:
    """What there is to say of a result beside its files; what it took `within` its stages only if that is asked for."""
    names = {stage: result.labels.get(stage, label_of(stage)) for stage in result.steps}
    told = Remarks(
        tuple(result.warnings),
        result.prompt_tokens,
        result.shown,
        sum(len(note.tokens) for note in result.written),
        needs=result.needs,
        labels=dict(result.labels),
        drew=tuple(each for stage, seconds in result.steps.items() if names[stage] == STEPS for each in seconds),
    )
    if not within:
        return told
    return msgspec.structs.replace(
        told,
        blocks={name: sum(runs) for name, runs in result.blocks.items()},
        block_bytes={name: max(held) for name, held in result.blocks_held.items()},
        steps=dict(result.steps),
        held=dict(result.held),
    )


def build(settings: Settings) -> Engine:
    """The engine of this rank; never returns on ranks other than 0, which follow and end with SystemExit."""
    return rank_of(settings).build()


def rank_of(settings: Settings) -> Rank:
    """Which rank of which group this process is."""
    return Rank(settings.config, settings.rank, settings.ranks, settings.meeting, settings.seat, settings.seats)


def ended(request_id: str, error: BaseException) -> Ended:
    """That a request ends by `error`, as a report."""
    param = error.param if isinstance(error, RequestError) else None
    wait = error.retry_after if isinstance(error, CapacityError) else None
    return Ended(request_id, *kind_of(error), param, wait)


def kind_of(error: BaseException) -> tuple[str, str]:
    """The class of `core.errors` that stands for `error` (or "MemoryError"), and what to say."""
    if isinstance(error, OmnimuseError):
        return type(error).__name__, str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "MemoryError", str(error).split(". ")[0]
    return "ModelError", f"the result could not be finished: {type(error).__name__}: {error}"


def told_of(config: Config) -> dict[str, Any]:
    """What files that are made say of who made them, but for its dtype and device."""
    engine = {"engine": config.told} if config.told else {}
    return {"model": model_name(config), **config.model.told, **engine}


def model_name(config: Config) -> str:
    """What files and clients are told of the model: its id, of a folder only the last part."""
    name = config.model.model
    folder = Path(name).expanduser()
    return Path(os.path.abspath(folder)).name if folder.is_dir() else name  # of a link its own name, not its target's


def lead(settings: Settings) -> int:
    """Rank 0, with a spool that is here: talk until the end; the exit status."""
    if settings.key:
        with closing(PrivateFolder()) as folder:
            return talk(msgspec.structs.replace(settings, spool=folder.path), Worker)
    return talk(settings, Worker)


def main() -> None:
    """Run one rank."""
    run(lambda settings: follow(rank_of(settings).build, settings.rank) if settings.rank else lead(settings))


if __name__ == "__main__":
    main()
