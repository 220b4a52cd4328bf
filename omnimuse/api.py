"""The Python face: `Omni` for scripts, `AsyncOmni` for programs that serve, `explain` for people who ask why.

Thin on purpose: it turns prompts into requests, feeds the engine, and puts results in order. torch is imported when an
engine is made, not before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from omnimuse.core.config import Choice, Config, ModelConfig
from omnimuse.core.errors import CapacityError, ConfigError, OmnimuseError, RequestError
from omnimuse.core.output import Done, Event, Failed, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request

if TYPE_CHECKING:
    from omnimuse.engine.engine import Engine

Prompt = str | Mapping[str, Any]
"""A prompt, or a dict with `prompt` and optionally `negative_prompt` and `images`: Pillow images or names of files."""

Listener = Callable[[Event], None]


def configure(model: str, dtype: str | None, device: str | None, config: Config | None) -> Config:
    """The whole configuration from what a caller gave."""
    base = config or Config(ModelConfig(model))
    part = base.model
    part = replace(part, model=model, dtype=dtype or part.dtype, device=device or part.device)
    return replace(base, model=part)


class Omni:
    """An engine for one model, driven by the calling thread.

    `model` is a bundled id (`omnimuse/shapes`), a folder in the diffusers layout, or a hub id. `dtype` is "float32",
    "bfloat16" or "float16", `device` a torch device; left out, `explain` tells what is chosen and why.
    """

    def __init__(
        self, model: str, *, dtype: str | None = None, device: str | None = None, config: Config | None = None
    ) -> None:
        from omnimuse.engine.local import start

        self.config = configure(model, dtype, device, config)
        self._engine: Engine = start(self.config)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: DiffusionParams | Sequence[DiffusionParams] | None = None,
        *,
        progress: bool | Listener = True,
        previews: int = 0,
    ) -> list[Result]:
        """One result per prompt, in order. A prompt that fails becomes a result with `error` set; the others come back.

        `params` is one object for all prompts or one per prompt. `progress` shows a bar on a terminal, or receives
        every event; `previews` asks for a preview event every so many steps. With a single prompt its error is raised.
        """
        single = isinstance(prompts, str | Mapping)
        asks = _asks([prompts] if single else list(prompts), params, previews)  # type: ignore[list-item]
        with _Display(progress) as listen:
            results = self._run(asks, listen)
        if single and results[0].error is not None:
            raise results[0].error
        return results

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that this engine computes with."""
        return self._engine.place

    def close(self) -> None:
        """Free the weights and everything in flight. Safe to call twice."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, asks: Sequence[Ask], listen: Listener) -> list[Result]:
        results: dict[int, Result] = {}
        waiting: deque[tuple[int, Request]] = deque()
        for index, ask in enumerate(asks):
            try:
                opened = replace(ask, prompt=_with_pictures(ask.prompt))
                waiting.append((index, self._engine.make_request(opened)))
            except RequestError as error:
                results[index] = _failure("", ask, error)
        places: dict[str, int] = {}
        try:
            while waiting or places:
                self._feed(waiting, places)
                for event in self._engine.tick():
                    listen(event)
                    if isinstance(event, Done | Failed) and event.request_id in places:
                        place = places.pop(event.request_id)
                        results[place] = self._settled(event, asks[place])
        finally:
            for request_id in places:  # interrupted: leave nothing running behind
                self._engine.cancel(request_id)
        return [results[index] for index in range(len(asks))]

    def _feed(self, waiting: deque[tuple[int, Request]], places: dict[str, int]) -> None:
        while waiting:
            index, request = waiting[0]
            try:
                self._engine.submit(request)
            except CapacityError:
                return  # the queue is bounded; the rest follows when there is room
            places[request.id] = index
            waiting.popleft()

    def _settled(self, event: Done | Failed, ask: Ask) -> Result:
        from omnimuse.engine.local import present

        if isinstance(event, Failed):
            return _failure(event.request_id, ask, event.error)
        return present(event.result, self._engine.runner.pipeline.media)


class AsyncOmni:
    """An engine for one model on a thread of its own, for asyncio programs.

    ```python
    async for event in AsyncOmni("omnimuse/shapes").generate("a red circle"): ...
    ```
    """

    def __init__(
        self, model: str, *, dtype: str | None = None, device: str | None = None, config: Config | None = None
    ) -> None:
        from omnimuse.engine.local import Background, start

        self.config = configure(model, dtype, device, config)
        self._background = Background(partial(start, self.config))

    async def generate(
        self,
        prompt: Prompt,
        params: DiffusionParams | None = None,
        *,
        previews: int = 0,
        ask: Ask | None = None,
    ) -> AsyncIterator[Event]:
        """The events of one request, the last of which is `Done`; errors are raised.

        Leaving the iterator early, or cancelling the task, cancels the request at its next step. `ask` sets priority,
        tenant and timeout, too.
        """
        import asyncio  # half the time that importing this package would take

        from omnimuse.engine.local import present

        engine = self._background.engine
        opened, chosen = _with_pictures(prompt), params or DiffusionParams()
        wanted = replace(ask or Ask(""), prompt=opened, params=chosen, previews=previews)
        request = engine.make_request(wanted)
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
                    event = Done(event.request_id, present(event.result, engine.runner.pipeline.media))
                yield event
        finally:
            if not ended:
                self._background.cancel(request.id)

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


def explain(
    model: str, *, dtype: str | None = None, device: str | None = None, config: Config | None = None
) -> list[Choice]:
    """What an engine for `model` would choose and why, without loading any weights."""
    from omnimuse.worker.build import explain as explain_build

    return explain_build(configure(model, dtype, device, config))


def _asks(
    prompts: list[Prompt], params: DiffusionParams | Sequence[DiffusionParams] | None, previews: int
) -> list[Ask]:
    if params is None or isinstance(params, DiffusionParams):
        params = [params or DiffusionParams()] * len(prompts)
    if len(params) != len(prompts):
        raise ConfigError(f"{len(params)} params for {len(prompts)} prompts; give one for all, or one per prompt")
    return [Ask(prompt, chosen, previews=previews) for prompt, chosen in zip(prompts, params, strict=True)]


def _with_pictures(prompt: Prompt) -> Prompt:
    """`prompt` with its pictures opened; RequestError for what cannot be read."""
    if not isinstance(prompt, Mapping) or not isinstance(prompt.get("images") or None, list | tuple):
        return prompt  # what is wrong with it, the door says
    from omnimuse.media.picture import open_picture

    return {**prompt, "images": [open_picture(image) for image in prompt["images"]]}


def _failure(request_id: str, ask: Ask, error: OmnimuseError) -> Result:
    text = ask.prompt if isinstance(ask.prompt, str) else str(ask.prompt.get("prompt", ""))
    return Result(request_id, text, ask.params, error=error)


class _Display:
    """The progress display as a context: none, a bar, or the caller's own function."""

    def __init__(self, progress: bool | Listener) -> None:
        self.progress = progress
        self._display: Any = None

    def __enter__(self) -> Listener:
        if callable(self.progress):
            return self.progress
        if not self.progress:
            return lambda event: None
        from omnimuse.observe.progress import ProgressDisplay

        self._display = ProgressDisplay()
        return self._display.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.__exit__(kind, error, trace)
