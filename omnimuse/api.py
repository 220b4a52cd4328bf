"""The Python face: `Omni` for scripts, `AsyncOmni` for programs that serve, `explain` for people who ask why.

Thin on purpose: it turns prompts into requests, feeds the engine, and puts results in order. torch is imported when an
engine is made, not before.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from omnimuse.core.calls import begun_of, tools_of
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import CapacityError, ConfigError, OmnimuseError, RequestError
from omnimuse.core.loras import Loras, loras_of
from omnimuse.core.output import Done, Event, Failed, Result
from omnimuse.core.params import Choices, DiffusionParams, TokenParams, make_params
from omnimuse.core.request import Ask, Door, Request
from omnimuse.deploy.short import Short, configure
from omnimuse.media.destination import check_destination
from omnimuse.media.prompts import Prompt as Prompt
from omnimuse.media.prompts import Tools, given_as, is_talk, with_sources

if TYPE_CHECKING:
    from omnimuse.deploy.pools import Pools
    from omnimuse.engine.engine import Engine
    from omnimuse.engine.local import Background
    from omnimuse.engine.warm import Warmed

Params = DiffusionParams | TokenParams | Mapping[str, Any]
"""Per-request choices, or a dict of them."""

Listener = Callable[[Event], None]


class Chosen(Choices, total=False):
    """What can be said of all prompts as keywords: fields of parameters, and the tools of conversations."""

    tools: Tools | None


FULL = 0.02
"""Seconds between two tries to enter a queue that others keep full."""


@contextmanager
def _served() -> Iterator[None]:
    """ConfigError where what pools need is not installed, which is imported within."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'a model in pools needs {error.name}, which is not installed: pip install "omnimuse[serve]"'
        ) from None


def _driven(config: Config) -> Background | Pools:
    """An engine on a thread of its own, or the front of several processes."""
    if config.deploy.pools:
        with _served():
            from omnimuse.deploy.pools import Pools
        return Pools(config)
    from omnimuse.deploy.ranks import start_ranks
    from omnimuse.engine.local import Background

    return Background(partial(start_ranks, config))


class Omni:
    """An engine for one model, on a thread of its own; any number of threads may call it at once.

    `model` is a bundled id (`omnimuse/shapes`), a folder in the diffusers layout, or a hub id. `dtype` is "float32",
    "bfloat16" or "float16", `device` a torch device, `threads` how many compute on the CPU; left out, `explain` tells
    what is chosen and why.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        config: Config | None = None,
        **short: Unpack[Short],
    ) -> None:
        self.config = configure(model, config, short)
        self.times_blocks = False  # whether results tell what every block of a network takes (`Result.blocks`)
        self._recorded = Lock()
        self._background = _driven(self.config)
        self._close = weakref.finalize(self, self._background.close)  # also when the interpreter ends

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        progress: bool | Listener = True,
        previews: int | None = None,
        chunks: bool = False,
        adjust: bool = False,
        deadline: float | str | None = None,
        **choices: Unpack[Chosen],
    ) -> list[Result]:
        """One result per prompt, in order. A prompt that fails becomes a result with `error` set; the others come back.

        `params` (or a dict of its fields) is one for all prompts or one per prompt; `choices` are fields of it for all:
        `generate("a red circle", seed=7)`. `progress` shows a bar on a terminal or in a notebook (there with looks at
        what is being made), or receives every event; `previews` asks for a preview event every so many steps, `chunks`
        for pieces of an output as they are finished, where the model finishes it piece by piece. `adjust` makes sides
        and frames the nearest that the model can make, where they would be refused; `Result.warnings` tell of it.
        `deadline` is when every result is wanted, and of no use later: in seconds, or a class of
        `ScheduleConfig.deadlines`. `tools` may be asked for in every conversation; of a result, `text` is without what
        its `calls` say. With a single prompt its error is raised.
        """
        single, many = _listed(prompts)
        shown = _Display(progress)
        every = shown.previews if previews is None else previews
        with shown as listen:
            told = self.stream(
                many, params, listen=listen, previews=every, chunks=chunks, adjust=adjust, deadline=deadline, **choices
            )
            done = dict(told)
        if single and (error := done[0].error) is not None:
            raise error
        return [done[place] for place in range(len(many))]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        listen: Listener | None = None,
        previews: int = 0,
        chunks: bool = False,
        adjust: bool = False,
        deadline: float | str | None = None,
        **choices: Unpack[Chosen],
    ) -> Iterator[tuple[int, Result]]:
        """The place of a prompt among `prompts` and its result, for each as soon as it is done.

        Otherwise as `generate`; `listen` receives every event. Leaving the iterator early cancels what is not done.
        """
        how = Ask("", previews=previews, chunks=chunks, deadline=deadline, blocks=self.times_blocks)
        asks = _asks(_listed(prompts)[1], params, choices, how)
        changes: list[list[str]] = [[] for _ in asks]
        if adjust:
            for place, ask in enumerate(asks):
                asks[place], changes[place] = _adjusted(self._background.door, ask)
        events: SimpleQueue[Event] = SimpleQueue()
        waiting: deque[tuple[int, Request]] = deque()
        places: dict[str, int] = {}
        try:
            for place, ask in enumerate(asks):
                try:
                    waiting.append((place, self._request(ask)))
                except RequestError as error:
                    yield place, _failure("", ask, error)
            while waiting or places:
                self._feed(waiting, places, events)
                event = events.get()
                if listen is not None:
                    listen(event)
                if isinstance(event, Done | Failed):
                    place = places.pop(event.request_id)
                    yield place, self._settled(event, asks[place], changes[place])
        finally:
            for request_id in places:  # interrupted: leave nothing running behind
                self._background.cancel(request_id)

    def try_on(self, loras: Loras) -> None:
        """Read adapters before a request wears them; RequestError for what none can wear, with the reason."""
        self._background.try_on(loras_of(loras) or ())

    @property
    def engine(self) -> Engine:
        """The engine itself, for those who look inside; its thread alone may tick it."""
        return self._background.engine

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that this engine computes with."""
        return self._background.place

    @contextmanager
    def recording(self, path: Path | str) -> Iterator[None]:
        """Record every operation, on every rank, for the length of a `with` block: a Chrome trace, compressed, in
        `path` (`trace.json.gz`), with stages by the names of `observe/labels.py`, every step, and blocks by theirs.

        RequestError where no such file can be written, CapacityError within another recording of this process.
        """
        with _recording(self._background, self._recorded, Path(path)):
            yield

    def sleep(self) -> int:
        """Let every weight leave the device until `wake_up`; how many bytes did. Requests wait meanwhile."""
        return self._background.between_ticks(self.engine.sleep).result()

    def wake_up(self) -> None:
        """Bring the weights back, to the bit."""
        self._background.between_ticks(self.engine.wake_up).result()

    def close(self) -> None:
        """Free the weights and everything in flight. Safe to call twice."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, ask: Ask) -> Request:
        opened = with_sources(ask.prompt, ask.params, watched=self._background.door.spec.writes)
        return self._background.make_request(replace(ask, prompt=opened))

    def _feed(self, waiting: deque[tuple[int, Request]], places: dict[str, int], events: SimpleQueue[Event]) -> None:
        """Submit what the bounded queue takes; at least one request of ours is in flight afterwards."""
        while waiting:
            place, request = waiting[0]
            try:
                self._background.submit(request, events.put)
            except CapacityError:
                if places:
                    return  # the rest follows when one of ours is done
                time.sleep(FULL)  # the queue is full of other callers' requests
                continue
            places[request.id] = place
            waiting.popleft()

    def _settled(self, event: Done | Failed, ask: Ask, changes: list[str]) -> Result:
        from omnimuse.engine.local import present

        if isinstance(event, Failed):
            return _failure(event.request_id, ask, event.error)
        try:
            return _told(present(event.result, self._background.door.limits), changes, ask.prompt)
        except OmnimuseError as error:
            return _failure(event.request_id, ask, error)


class AsyncOmni:
    """An engine for one model on a thread of its own, for asyncio programs.

    ```python
    async for event in AsyncOmni("omnimuse/shapes").generate("a red circle"): ...
    ```
    """

    def __init__(
        self,
        model: str | Path,
        *,
        config: Config | None = None,
        **short: Unpack[Short],
    ) -> None:
        self.config = configure(model, config, short)
        self.times_blocks = False  # as in `Omni`; an `ask` may want it for one request
        self._recorded = Lock()
        self._background = _driven(self.config)

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        previews: int | None = None,
        chunks: bool | None = None,
        ask: Ask | None = None,
        adjust: bool = False,
        deadline: float | str | None = None,
        **choices: Unpack[Chosen],
    ) -> AsyncIterator[Event]:
        """The events of one request, the last of which is `Done`; errors are raised.

        Leaving the iterator early, or cancelling the task, cancels the request at its next step. `ask` sets priority,
        tenant and timeout, too; what is given beside it counts before what it says. The rest is as in `Omni`.
        """
        import asyncio  # half the time that importing this package would take

        base, driven = ask or Ask(""), self._background
        fields, tools = _parted(choices)
        chosen = make_params(base.params if params is None else params, fields)
        watched = driven.door.spec.writes
        opened = await asyncio.to_thread(with_sources, given_as(prompt, tools), chosen, watched=watched)
        beside = {"previews": previews, "chunks": chunks, "deadline": deadline}
        said: dict[str, Any] = {name: value for name, value in beside.items() if value is not None}
        wanted = replace(base, prompt=opened, params=chosen, blocks=base.blocks or self.times_blocks, **said)
        wanted, changes = _adjusted(driven.door, wanted) if adjust else (wanted, [])
        request = driven.make_request(wanted)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._background.submit(request, deliver)
        ended = False
        try:
            while not ended:
                event = await events.get()
                ended = isinstance(event, Done | Failed)
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Done):
                    event = await asyncio.to_thread(self._presented, event, changes, opened)
                yield event
        finally:
            if not ended:
                self._background.cancel(request.id)

    @property
    def engine(self) -> Engine:
        """The engine itself, for those who look inside; its thread alone may tick it."""
        return self._background.engine

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that this engine computes with."""
        return self._background.place

    @asynccontextmanager
    async def recording(self, path: Path | str) -> AsyncIterator[None]:
        """As `Omni.recording`, for the length of an `async with` block."""
        import asyncio

        whole = _recording(self._background, self._recorded, Path(path))
        begun = asyncio.create_task(asyncio.to_thread(whole.__enter__))
        try:
            await asyncio.shield(begun)
            yield
        finally:  # of one that is cancelled while it begins, too
            await asyncio.wait([begun])
            if begun.exception() is None:
                await asyncio.to_thread(whole.__exit__, None, None, None)

    async def sleep(self) -> int:
        """Let every weight leave the device until `wake_up`; how many bytes did. Requests wait meanwhile."""
        import asyncio

        return await asyncio.to_thread(self._background.between_ticks(self.engine.sleep).result)

    async def wake_up(self) -> None:
        """Bring the weights back, to the bit."""
        import asyncio

        await asyncio.to_thread(self._background.between_ticks(self.engine.wake_up).result)

    async def close(self) -> None:
        """Stop the thread and free everything; requests in flight fail with EngineClosedError."""
        import asyncio

        await asyncio.to_thread(self._background.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _presented(self, event: Done, changes: list[str], prompt: str | Mapping[str, Any]) -> Done:
        from omnimuse.engine.local import present

        return Done(event.request_id, _told(present(event.result, self._background.door.limits), changes, prompt))


def explain(
    model: str | Path, *, config: Config | None = None, measure: str | None = None, **short: Unpack[Short]
) -> list[Choice]:
    """What an engine for `model` would choose and why, without loading any weights; but to `measure` what a request of
    that size ("1024x1024", "832x480x81", "small", "default") takes beside them, they are loaded."""
    from omnimuse.engine.measure import told

    chosen = configure(model, config, short)
    if chosen.deploy.pools:
        with _served():
            from omnimuse.deploy.connectors import check_connectors
        check_connectors(chosen.deploy)
    return told(chosen, measure)


def warm(model: str | Path, *, config: Config | None = None, loras: Loras | None = None) -> Warmed:
    """Compile the blocks of `model` for this machine, so that engines with `CompileConfig("blocks")` start fast.

    With `loras` also as they wear adapters, which need not be those that requests will name.
    """
    from omnimuse.engine.warm import warm as warm_here

    return warm_here(configure(model, config, {}), loras)


@contextmanager
def _recording(driven: Background | Pools, recorded: Lock, path: Path) -> Iterator[None]:
    """What an engine computes meanwhile, recorded in `path`, one recording at a time."""
    from omnimuse.engine.recordings import recording

    check_destination(path, (".gz",))
    if not recorded.acquire(blocking=False):
        raise CapacityError("this engine is being recorded already; end that recording first")
    try:
        with recording(driven.engine.recordings, driven.between_ticks, path):
            yield
    finally:
        recorded.release()


def _listed(prompts: Prompt | Sequence[Prompt]) -> tuple[bool, list[Prompt]]:
    """Whether that is a single prompt, which no list is but one of messages; and all of them."""
    single = not isinstance(prompts, Iterable) or isinstance(prompts, str | bytes | Mapping) or is_talk(prompts)
    return single, [prompts] if single else list(prompts)  # type: ignore[list-item]


def _asks(prompts: Sequence[Prompt], params: Params | Sequence[Params] | None, choices: Chosen, how: Ask) -> list[Ask]:
    if not isinstance(params, list | tuple):
        params = [params] * len(prompts)  # type: ignore[list-item]
    if len(params) != len(prompts):
        raise ConfigError(f"{len(params)} params for {len(prompts)} prompts; give one for all, or one per prompt")
    chosen, tools = _parted(choices)
    made = [make_params(one, chosen) for one in params]
    given = [given_as(prompt, tools) for prompt in prompts]
    return [replace(how, prompt=prompt, params=one) for prompt, one in zip(given, made, strict=True)]


def _parted(choices: Chosen) -> tuple[dict[str, Any], Tools | None]:
    """The fields of parameters among `choices`, and the tools."""
    return {name: value for name, value in choices.items() if name != "tools"}, choices.get("tools")


def _adjusted(door: Door, ask: Ask) -> tuple[Ask, list[str]]:
    """`ask` for what the model can make, and what was changed for that, in words."""
    params, changes = door.adjusted(ask.params)
    return replace(ask, params=params), changes


def _told(result: Result, changes: list[str], prompt: str | Mapping[str, Any]) -> Result:
    if not isinstance(prompt, str) and (tools := tools_of(prompt, True)):
        result = result.apart(begun_of(prompt, tools))
    return replace(result, said=(*changes, *result.said))


def _failure(request_id: str, ask: Ask, error: OmnimuseError) -> Result:
    given = ask.prompt.get("prompt", "") if isinstance(ask.prompt, Mapping) else ask.prompt
    text = given if isinstance(given, str) else ""
    return Result(request_id, text, ask.params, error=error)


class _Display:
    """The progress display as a context: none, a bar, or the caller's own function.

    `previews` is every how many steps it wants a look.
    """

    def __init__(self, progress: bool | Listener) -> None:
        self.progress = progress
        self.previews = 0
        self._display: Any = None
        if progress is True:
            from omnimuse.observe.progress import ProgressDisplay

            self._display = ProgressDisplay()
            self.previews = self._display.previews

    def __enter__(self) -> Listener:
        if callable(self.progress):
            return self.progress
        return self._display.__enter__() if self._display is not None else lambda event: None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.__exit__(kind, error, trace)
