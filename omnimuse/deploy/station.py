"""A station: one engine that runs the stages of one pool, and obeys what comes over its edge to the front.

`deploy/pools.py` starts it as a process, `python -m omnimuse.deploy.station`, whose life is that of a worker's process:
settings on its standard input, beats over a line; or makes one in its own process (connector `local`). Where the engine
has several ranks, so many processes are started: rank 0 has the edge, and the others follow it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from omnimuse.core.config import Config
from omnimuse.core.errors import EngineDeadError, ModelError, OmnimuseError
from omnimuse.core.machine import resident
from omnimuse.core.output import Done, Event, Failed, Handed, Progress, Result
from omnimuse.core.request import Request
from omnimuse.deploy.child import Settings, run, talk
from omnimuse.deploy.connectors import Blob, Connector, kind_of
from omnimuse.deploy.faults import ALWAYS, Faults
from omnimuse.deploy.frames import (
    AnyFrame,
    Close,
    Credit,
    Frame,
    Hold,
    Open,
    Put,
    Said,
    Share,
    Try,
    TryOn,
    Way,
    Weigh,
    Weighed,
)
from omnimuse.deploy.line import Line
from omnimuse.deploy.process import build, ended, rank_of
from omnimuse.deploy.ranks import follow
from omnimuse.deploy.warming import warm_up
from omnimuse.deploy.wire import Beat, Command, NotStarted, Ready, unpack
from omnimuse.worker.find import find
from omnimuse.worker.plan import Heard

if TYPE_CHECKING:
    from omnimuse.engine.local import Background

Arrived = list[tuple[Put, Blob | None]]
COMMAND = (sys.executable, "-P", "-m", "omnimuse.deploy.station")


class Station:
    """Serves one edge with one engine. Frames are heard on the edge's thread, and obeyed between two ticks, in order.

    It was built as `config` says. `gone` is called when the front is.
    """

    def __init__(
        self, config: Config, background: Background, edge: Connector, faults: Faults, gone: Callable[[], None]
    ) -> None:
        self._config, self._background, self._edge, self._faults = config, background, edge, faults
        self._first = background.engine.runner.hand.first
        self._requests: dict[str, Request] = {}
        self._tried: dict[str, tuple[Try, Arrived]] = {}
        self._wanted: set[str] = set()  # of these, as far as was heard: the engine's thread may be in the midst of one
        self._sharing: Future[None] = Future()
        self._sharing.set_result(None)
        self.ticks = 0
        background.engine.moved = self._move
        edge.start(self._hear, gone)

    @property
    def busy(self) -> bool:
        """Whether it has requests that it could work on."""
        return bool(self._requests) and not self._background.engine.idle

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, and of those that nobody wears."""
        return self._background.adapters

    def close(self) -> None:
        """End the engine, on all of its ranks."""
        self._background.close()

    def _move(self) -> None:
        self.ticks += 1

    def _hear(self, frame: AnyFrame, blob: Blob | None) -> None:
        if isinstance(frame, Weigh):
            if self._sharing.done():
                self._edge.send(self._weighed(frame))
            else:
                self._sharing.add_done_callback(lambda _: self._edge.send(self._weighed(frame)))
            return
        if isinstance(frame, Try):
            self._wanted.add(frame.stream)
        elif isinstance(frame, Close):
            self._wanted.discard(frame.stream)
        try:
            done = self._background.between_ticks(partial(self._obey, frame, blob))
        except EngineDeadError:
            return  # it is being closed
        if isinstance(frame, Share):  # by which all is weighed that is heard of behind it
            self._sharing = done
        done.add_done_callback(partial(self._tell_failure, frame))

    def _weighed(self, frame: Weigh) -> Weighed:
        engine = self._background.engine
        request = unpack(frame.request, engine.door.spec)
        ways = engine.fitting.ways(request, engine.space)
        return Weighed(frame.stream, [Way(way.tile, way.doubted, way.needs, *(way.refusal or ())) for way in ways])

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _obey(self, frame: AnyFrame, blob: Blob | None) -> None:
        engine, stream = self._background.engine, frame.stream
        if isinstance(frame, Open):
            self._requests[stream] = replace(unpack(frame.request, engine.door.spec), id=stream)
            if self._first:
                self._submit(stream)
        elif isinstance(frame, Try):
            self._tried[stream] = frame, []
            if self._first or frame.vain:
                self._try(stream)
        elif isinstance(frame, TryOn):
            self._try_on(frame)
        elif isinstance(frame, Share):
            self._share(frame)
        elif stream in self._tried:
            self._add(frame, blob)
        elif stream not in self._requests:
            return  # it has ended here, and the front learns that soon
        elif isinstance(frame, Put):
            self._take(frame, blob)
        elif isinstance(frame, Credit):
            engine.taken(stream)
        elif isinstance(frame, Hold):
            (engine.pause if frame.held else engine.resume)(stream)
        elif isinstance(frame, Close):
            del self._requests[stream]
            engine.cancel(stream)

    def _submit(self, stream: str) -> None:
        self._background.submit(self._requests[stream], self._listen)

    def _take(self, frame: Put, blob: Blob | None) -> None:
        data = memoryview(b"") if blob is None else blob.view()
        self._background.engine.hear(Heard(frame.stream, frame.head, data))
        if frame.number == 0:
            self._submit(frame.stream)
        self._edge.send(Credit(frame.stream))

    def _add(self, frame: AnyFrame, blob: Blob | None) -> None:
        """More of what is tried has come; both small ones are there with the second last piece."""
        arrived = self._tried[frame.stream][1]
        if isinstance(frame, Put):
            arrived.append((frame, blob))
            if sum(put.last for put, _ in arrived) == 2:
                self._try(frame.stream)
        elif isinstance(frame, Close):
            del self._tried[frame.stream]

    def _try(self, stream: str) -> None:
        from omnimuse.engine.engine import try_part

        asked, arrived = self._tried[stream]
        engine = self._background.engine

        def came(number: int) -> list[Heard]:
            first = next((index + 1 for index, (put, _) in enumerate(arrived) if put.last), 0)
            pieces = arrived[first:] if number else arrived[:first]
            return [Heard(stream, put.head, memoryview(b"") if blob is None else blob.view()) for put, blob in pieces]

        def wanted() -> bool:
            return stream in self._wanted and not engine.stopping

        request = replace(unpack(asked.request, engine.door.spec), id=stream)
        for pieces in try_part(engine, request, None if asked.vain else came, wanted):
            for piece in pieces:
                self._send(partial(Put, stream, piece.number, piece.last), piece.handover.plain())
        self._tried_out(stream)

    def _tried_out(self, stream: str) -> None:
        self._wanted.discard(stream)
        if self._tried.pop(stream, None) is not None:
            self._edge.send(Close(stream))

    def _share(self, frame: Share) -> None:
        from omnimuse.engine.local import share
        from omnimuse.worker.place import Portion

        share(self._background.engine, self._config, Portion(self._config.groups, frame.beside, frame.among))

    def _try_on(self, frame: TryOn) -> None:
        from omnimuse.engine.wearing import try_on

        try:
            try_on(self._background.engine, frame.loras)
        except OmnimuseError as error:
            self._edge.send(closed(frame.stream, error))
        else:
            self._edge.send(Close(frame.stream))

    def _listen(self, event: Event) -> None:
        self._move()
        request = self._requests.get(event.request_id)
        if request is None:
            return
        try:
            self._pass_on(request, event)
        except ModelError as error:  # it holds what cannot travel
            self._requests[event.request_id] = request
            self._end(event.request_id, error)
            self._background.cancel(event.request_id)

    def _pass_on(self, request: Request, event: Event) -> None:
        if isinstance(event, Failed):
            if not isinstance(event.error, EngineDeadError):  # or it is to blame for nothing, and is done once more
                self._end(event.request_id, event.error)
        elif isinstance(event, Handed):
            self._put(event.request_id, event.number, event.last, event.handover.plain())
        elif isinstance(event, Done):
            self._put(event.request_id, 0, True, told(event.result))
        else:
            self._send(partial(Said, event.request_id), event)
            if isinstance(event, Progress) and (event.steps is None or event.steps > 1):
                self._reach(request, event)

    def _reach(self, request: Request, event: Progress) -> None:
        try:
            self._faults.reach("worker.step", event.step, request.prompt)
        except (OmnimuseError, MemoryError) as error:
            self._end(request.id, error)
            self._background.cancel(request.id)

    def _put(self, stream: str, number: int, last: bool, value: Any) -> None:
        if last:
            del self._requests[stream]
        self._send(partial(Put, stream, number, last), value)

    def _send(self, frame: Callable[[bytes], Frame], value: Any) -> None:
        from omnimuse.worker.packing import Packer

        packer = Packer(self._background.engine.runner.pipeline.records)
        head = packer.pack(value)
        blob = self._edge.room(packer.size)
        if blob is not None:
            packer.write(blob.fill)
        self._edge.send(frame(head), blob)  # type: ignore[arg-type]

    def _tell_failure(self, frame: AnyFrame, done: Future[None]) -> None:
        engine = self._background.engine
        if (error := done.exception()) is not None and engine.dead is None:  # then who asked is to blame for nothing
            engine.forget(frame.stream)
            self._end(frame.stream, error)
            self._tried_out(frame.stream)

    def _end(self, stream: str, error: BaseException) -> None:
        if self._requests.pop(stream, None) is not None:
            self._edge.send(closed(stream, error))


def closed(stream: str, error: BaseException) -> Close:
    """That a stream is over by `error`."""
    end = ended(stream, error)
    return Close(stream, end.kind, end.message, end.param, end.retry_after)


def told(result: Result) -> dict[str, Any]:
    """What the front cannot know of a result."""
    took = ("timings", "steps", "held", "blocks", "blocks_held")
    names = ("tensors", *took, "texts", "shown", "written", "said", "labels")
    return {name: getattr(result, name) for name in names}


# -- a process of its own ----------------------------------------------------------------------------------------------


class Process:
    """What the threads of a station's process share."""

    def __init__(self, settings: Settings, line: Line) -> None:
        self.settings, self.failed = settings, False
        self._line = line
        self._station: Station | None = None

    def load(self) -> None:
        """Build the engine, join the front, and say that this pool is ready; or why it cannot be."""
        began, settings = time.monotonic(), self.settings
        faults = Faults.read(settings.faults, settings.first)
        try:
            faults.reach("worker.start", 1, ALWAYS)
            find(settings.config)  # what is missing is told before torch is imported
            from omnimuse.engine.local import Background

            background = Background(partial(build, settings), self._die, by_token=bool(faults))
            if background.engine.runner.hand.first and background.engine.runner.hand.last:
                warm_up(background, settings.warm_up)
            assert settings.edge is not None
            options = settings.config.deploy.connectors.get(settings.edge.kind, {})
            edge = kind_of(settings.edge.kind, options=options).connect(
                settings.edge.address, bytes.fromhex(settings.edge.key), settings.edge.name
            )
            config = replace(settings.config, host=replace(settings.config.host, processes=settings.seats))
            self._station = Station(config, background, edge, faults, self._line.end)
        except (OmnimuseError, OSError) as error:
            kind = type(error).__name__ if isinstance(error, OmnimuseError) else ""
            self._give_up(NotStarted(kind, str(error)))
            return
        engine = background.engine
        self._line.send(Ready(time.monotonic() - began, engine.place, dict(engine.space.weights), resident()))

    def on_thread_death(self, died: threading.ExceptHookArgs) -> None:
        """A thread ended by what nobody expected: the process ends, and another is started."""
        sys.__excepthook__(died.exc_type, died.exc_value or died.exc_type(), died.exc_traceback)
        self._give_up(NotStarted("", f"{died.exc_type.__name__}: {died.exc_value}"))

    def obey(self, command: Command) -> None:
        """The only word from the line is that this is over."""
        self._line.end()

    def beat(self) -> Beat:
        """How this station is; loading counts as being busy."""
        if (station := self._station) is None:
            return Beat(0, True, resident())
        return Beat(station.ticks, station.busy, resident(), adapters=station.adapters)

    def close(self) -> None:
        """What is in progress is dropped with the process; other ranks are told."""
        if self._station is not None and self.settings.ranks > 1:
            self._station.close()

    def _die(self, error: EngineDeadError) -> None:
        self._give_up(NotStarted("", str(error)))

    def _give_up(self, why: NotStarted) -> None:
        self.failed = True
        self._line.send(why)
        self._line.end()


def main() -> None:
    """Be a station, or a rank of one, until told to end, or until the front is gone."""
    run(lambda settings: follow(rank_of(settings).build, settings.rank) if settings.rank else talk(settings, Process))


if __name__ == "__main__":
    main()
