"""A whole engine in this process: built from a configuration, driven by the caller's thread or by its own.

The Python API and the server's workers start here. It adds nothing to the engine but construction, presentation of
results, and (for `Background`) a thread.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from omnimuse.compat.contract.spec import LIBRARY as CONTRACT
from omnimuse.core.config import Config, ScheduleConfig
from omnimuse.core.errors import EngineClosedError, EngineDeadError, NumericalError
from omnimuse.core.loras import Lora, loras_of, told
from omnimuse.core.output import Done, Event, Failed, Part, Result, is_last
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Recording, Request
from omnimuse.core.spec import Limits
from omnimuse.engine.engine import Engine, follow
from omnimuse.engine.foretelling import Unwanted, drawn
from omnimuse.engine.wearing import try_on
from omnimuse.media.image import to_image
from omnimuse.media.recording import samples_of
from omnimuse.media.sound import Sound, to_sound
from omnimuse.media.video import to_video
from omnimuse.observe.parts import log_parts
from omnimuse.parallel.agree import agree_on_start
from omnimuse.parallel.meeting import Gone
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Loop
from omnimuse.worker.build import Built, build
from omnimuse.worker.connect import connect
from omnimuse.worker.pace import Shared
from omnimuse.worker.place import WHOLE, Portion, free_bytes, kept_bytes
from omnimuse.worker.rest import Rest
from omnimuse.worker.room import Space
from omnimuse.worker.runner import Runner

log = logging.getLogger(__name__)
T = TypeVar("T")


def start(config: Config, gone: Gone | None = None) -> Engine:
    """Build the model that `config` names and an engine over it. Takes as long as loading the weights.

    Where several ranks share the work, only rank 0 gets an engine. The others follow it until it is closed, and then
    end their process: what comes after in a script is rank 0's alone. `gone` tells of ranks that end meanwhile.
    """
    mesh = connect(config.parallel, gone)
    with ExitStack() as opened:
        try:
            built = build(config, mesh)
            opened.callback(built.resources.close)
            runner, space = _running(config, built)
        except Exception as error:
            agree_on_start(mesh, error)
            raise
        agree_on_start(mesh, None)
        opened.pop_all()
    if not mesh.is_leader:
        follow(runner, built.governor)
        raise SystemExit(0)
    return Engine(runner, built.door, governor=built.governor, space=space)


def _running(config: Config, built: Built) -> tuple[Runner, Space]:
    """What carries out the plans for this rank, and the space that it has for that."""
    ctx = built.pipeline.ctx
    space, schedule = measured(config, built.pipeline, Portion(config.sharing))
    runner = Runner(built.pipeline, schedule, built.resources, crew=built.crew)
    runner.rest = Rest(ctx.components, ctx.device, config.offload.folder)
    runner.profiled = config.contract.profile and built.pipeline.spec.library != CONTRACT  # which times its own parts
    return runner, space


def measured(config: Config, pipeline: Pipeline, portion: Portion) -> tuple[Space, ScheduleConfig]:
    """The space that there is now for who has that `portion` of the machine, and the schedule that it allows."""
    ctx, layerwise = pipeline.ctx, config.offload.mode == "layers"
    here = [name for name in ctx.components if ctx.lent.get(name, ctx.mesh.rank) == ctx.mesh.rank]
    parts = {name: ctx.components.wherever(name) for name in here}
    there = Space.of(parts, ctx.device, ctx.dtype, layerwise=layerwise, portion=portion)
    space = there.within(config.host.room, ctx.device)
    return space, bounded(config.schedule, pipeline, space, portion)


def share(engine: Engine, config: Config, portion: Portion) -> None:
    """Have `engine` measure anew what space there is, as it has that `portion`; comes between two ticks."""
    runner = engine.runner
    engine.space, schedule = measured(config, runner.pipeline, portion)
    runner.config = runner.forwards.config = engine.scheduler.config = schedule
    engine.wake()


def finished(engine: Engine, *requests: Request, brief: float = 0.0) -> list[Result]:
    """What becomes of `requests`, which are in flight together and alone; what one of them fails with is raised.

    `brief` is that of `Engine.tick`.
    """
    ids, found = [engine.submit(request) for request in requests], dict[str, Result]()
    while not engine.idle:
        for event in engine.tick(brief):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                found[event.request_id] = event.result
    return [found[id_] for id_ in ids]


def bounded(schedule: ScheduleConfig, pipeline: Pipeline, space: Space, portion: Portion = WHOLE) -> ScheduleConfig:
    """`schedule` with no more in one tick than there is `space` for: the rows of others wait for the next one. And with
    what its outputs may remember in all, where nobody chose that and loops that grow remember.
    """
    most = space.in_a_tick()
    if most is not None and pipeline.ctx.mesh.size == 1:  # several ranks must divide rows alike
        schedule = replace(schedule, tick_tokens=min(schedule.tick_tokens, most))
    grows = any(isinstance(stage, Loop) and stage.grows for stage in pipeline.own)
    if schedule.running_bytes is not None or not grows:
        return schedule
    half = max(free_bytes(pipeline.ctx.device, portion), space.room or 0) // 2  # there may be more room, as said
    return replace(schedule, running_bytes=max(1, half if space.room is None else min(half, space.room)))


def present(result: Result, limits: Limits) -> Result:
    """`result` in the form its output type asks for: parts for "pil", the tensors otherwise. `limits` are the model's.

    NumericalError if an output holds NaN or infinite values; this and one of the pipeline's own name the adapters that
    were worn. Computes with numpy only (see `Background`), for seconds where there are many frames.
    """
    if isinstance(result.error, NumericalError):
        return replace(result, error=_with_adapters(result.error, result.params))
    if result.error is not None:
        return result
    check_finite(result)
    if result.params.output_type != "pil":
        return _sounding(result)
    media = result.tensors.items()
    made = [[_parts(medium, value, result.params, limits) for value in values] for medium, values in media]
    outputs = zip(*made, strict=True)
    return replace(result, parts=tuple(tuple(chain.from_iterable(output)) for output in outputs), tensors={})


def _sounding(result: Result) -> Result:
    """`result` with the sounds that its videos keep as tensors, at the rate that they came with."""
    kept = {
        medium: [
            torch.from_numpy(samples_of(each, each.rate, each.channels)) if isinstance(each, Recording) else each
            for each in values
        ]
        for medium, values in result.tensors.items()
        if isinstance(values, list) and any(isinstance(each, Recording) for each in values)
    }
    return replace(result, tensors={**result.tensors, **kept}) if kept else result


def _parts(medium: str, value: Any, params: DiffusionParams, limits: Limits) -> list[Part]:
    """What people see, hear or read of `value`, which a pipeline made; an image of four dimensions is several, and of
    what an output does without there is nothing.
    """
    if value is None:
        return []
    pictures = value if medium == "image" and value.ndim == 4 else [value]
    return [_part(medium, each, params, limits) for each in pictures]


def _part(medium: str, value: Any, params: DiffusionParams, limits: Limits) -> Part:
    if medium == "image":
        return Part(medium, to_image(value))
    if medium == "video":
        assert params.fps, "a family of videos has a default frame rate"
        return Part(medium, to_video(value, params.fps))
    if isinstance(value, Recording):
        return Part(medium, Sound(samples_of(value, value.rate, value.channels), value.rate))
    if medium == "audio":
        assert limits.sound is not None, "a family of sound says how it samples"
        return Part(medium, to_sound(value, limits.sound.rate))
    return Part(medium, value)


def check_finite(result: Result) -> None:
    """NumericalError if an output holds NaN or infinite values."""
    broken = sorted(
        {
            index
            for values in result.tensors.values()
            for index, value in enumerate(values)
            if isinstance(value, Tensor) and not np.isfinite(value.float().numpy()).all()
        }
    )
    if broken:
        error = NumericalError(
            f"outputs {broken} hold values that are not finite numbers; another seed, lower guidance or "
            "--dtype float32 may help"
        )
        raise _with_adapters(error, result.params)


def _with_adapters(error: NumericalError, params: DiffusionParams) -> NumericalError:
    """`error`, which says what the request wore, if it wore anything: numbers that are too large alone or together."""
    worn = ", ".join(
        f"{each['name']} at {each['scale']:g}" for each in told(loras_of(params.loras) or ()) if each["scale"]
    )
    return NumericalError(f"{error}; it wore {worn}: try without, or at a lower scale") if worn else error


BRIEF = 0.025
"""Seconds that somebody who comes or goes may wait for those who write."""


class Errand(Generic[T]):
    """Something that the engine's thread is to do between two ticks."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.done: Future[T] = Future()
        self._work = work

    def run(self) -> None:
        """Do it; what goes wrong with it is told to whoever waits."""
        try:
            self.done.set_result(self._work())
        except Exception as error:  # of any kind: whoever waits raises it
            self.done.set_exception(error)


def learn(engine: Engine, request: Request, wanted: Callable[[], bool]) -> None:
    """Draw small ones of the kind of `request`, for which nobody waits, as long as they are `wanted`, so that what it
    takes is known before others ask for the like; comes between two ticks.
    """

    def draw(small: Request) -> bool:
        tried = replace(small, id=f"{request.id}-tried")
        return drawn(engine.alone(tried, wanted=lambda: wanted() and not engine.stopping)[-1])

    if engine.runner.hand.all and engine.foretelling.can_learn(request):
        with suppress(Unwanted):
            engine.foretelling.learn(request, draw)
            engine.reckon()


class Background:
    """Makes an engine and drives it on one thread of its own; every event of a request goes to its listener.

    Listeners are called on the engine's thread and must not block; one that raises is dropped, and its request
    cancelled. No other thread should compute with torch: each that does gets workers of its own, and with more of them
    than cores all wait for each other asleep. What `make` raises is raised here. When the engine dies, `on_death` hears
    it before the listeners do. `by_token`: every tick writes one token and no more, and tells it.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        on_death: Callable[[EngineDeadError], None] | None = None,
        *,
        by_token: bool = False,
    ) -> None:
        self._brief = 0.0 if by_token else BRIEF
        self._listeners: dict[str, Callable[[Event], None]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._on_death = on_death
        self._over = False
        self._errands: SimpleQueue[Errand[Any]] = SimpleQueue()
        made: Future[Engine] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="omnimuse-engine", daemon=True)
        try:
            self._thread.start()
            self.engine = made.result()
        except KeyboardInterrupt:
            self._interrupt()
            raise

    @property
    def door(self) -> Door:
        """What checks requests."""
        return self.engine.door

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device that the engine computes with."""
        return self.engine.place

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """The bytes of every component, and of its largest block that comes in by itself."""
        return dict(self.engine.space.weights)

    @property
    def held(self) -> int:
        """The bytes of the device that this process keeps now, for tensors that there are and that come."""
        return kept_bytes(self.engine.runner.pipeline.ctx.device)

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, and of those that nobody wears."""
        return self.engine.runner.remembered.adapters

    @property
    def retries(self) -> int:
        """How many forwards failed and were tried again."""
        return self.engine.runner.forwards.retries.total()

    @property
    def company(self) -> list[Shared]:
        """What shared forwards took, of their time apart; empty until some were measured."""
        return self.engine.runner.forwards.pace.table()

    @property
    def lost(self) -> dict[str, int]:
        """How many processes of each pool were replaced: it has none (`deploy/pools.py` has)."""
        return {}

    @property
    def away(self) -> list[str]:
        """The pools that have no process just now."""
        return []

    @property
    def asleep(self) -> bool:
        """Whether the weights are away."""
        return self.engine.asleep

    def make_request(self, ask: Ask) -> Request:
        """`ask`, checked and completed; nothing is queued yet."""
        return self.engine.make_request(ask)

    def submit(self, request: Request, listener: Callable[[Event], None]) -> None:
        """Queue `request`; its events, the last of which is Done or Failed, go to `listener`, unless this raises."""
        with self._lock:
            if self._stopping:
                raise EngineClosedError("this engine is closed; make a new one")
            self.engine.submit(request)
            self._listeners[request.id] = listener
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """Stop a request at the next step boundary."""
        self.engine.cancel(request_id)
        self._wake.set()

    def pause(self, request_id: str) -> None:
        """Hold a request between steps; RequestError for one that is unknown or has ended."""
        self.engine.pause(request_id)
        self._wake.set()

    def resume(self, request_id: str) -> None:
        """Let a paused request go on; RequestError for one that is unknown or has ended."""
        self.engine.resume(request_id)
        self._wake.set()

    def between_ticks(self, work: Callable[[], T]) -> Future[T]:
        """Have the engine's thread do `work` before its next tick: where the engine computes, and while it does not.

        What it raises is in the future.
        """
        errand = Errand(work)
        with self._lock:
            if self._over:
                raise EngineClosedError("this engine is closed; make a new one")
            self._errands.put(errand)
        self._wake.set()
        return errand.done

    def try_on(self, loras: Sequence[Lora]) -> None:
        """Read what requests are to wear, before any does; RequestError, or CapacityError, for what none can wear."""
        self.between_ticks(partial(try_on, self.engine, loras)).result()

    def learn(self, request: Request, wanted: Callable[[], bool]) -> None:
        """Have small ones of its kind drawn, as long as they are `wanted`."""
        self.between_ticks(partial(learn, self.engine, request, wanted)).result()

    def close(self) -> None:
        """Stop the thread and free the engine; requests in flight fail. Safe to call twice."""
        with self._lock:
            self._stopping = self.engine.stopping = True
        self._wake.set()
        self._thread.join()
        why = "the engine was closed before the request was done; try again in a moment"
        for request_id in list(self._listeners):
            self._deliver(Failed(request_id, EngineClosedError(why)))

    def _interrupt(self) -> None:
        """Have the thread leave what it does: it would go on for nobody, and abort the end of Python."""
        self._stopping = True
        ident = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(KeyboardInterrupt))
        self._thread.join()

    def _run(self, make: Callable[[], Engine], made: Future[Engine]) -> None:
        with suppress(KeyboardInterrupt):  # of `_interrupt`
            self._live(make, made)

    def _live(self, make: Callable[[], Engine], made: Future[Engine]) -> None:
        try:
            engine = make()
        except BaseException as error:  # of any kind: who waits for the engine raises it
            made.set_exception(error)
            return
        engine.woken = self._wake.set
        made.set_result(engine)
        try:
            while not self._stopping and engine.dead is None:
                if self._dies_of_errands(engine):
                    break
                rest = engine.rest()
                if rest == 0.0:
                    self._tick(engine)
                else:
                    self._wake.wait(rest)
                    self._wake.clear()
        except Exception as error:  # between two ticks: nobody is left waiting
            self._die(engine, error)
        self._refuse_errands()
        engine.close()  # here: a library's call that stands still can be unwound by its own thread alone

    def _dies_of_errands(self, engine: Engine) -> bool:
        """Do what is to be done between two ticks; whether nothing more comes of the engine then."""
        while not self._errands.empty():
            self._errands.get().run()
        if engine.dead is not None:
            self._tell_death(engine.dead)
        return engine.dead is not None

    def _die(self, engine: Engine, error: Exception) -> None:
        self._tell_death(engine.die(error))

    def _tell_death(self, dead: EngineDeadError) -> None:
        if self._on_death is not None:
            self._on_death(dead)
        with self._lock:  # whoever was let in before it died listens by now
            waiting = list(self._listeners)
        for request_id in waiting:
            self._deliver(Failed(request_id, EngineDeadError(str(dead))))

    def _refuse_errands(self) -> None:
        with self._lock:
            self._over = True
        why = "the engine was closed before it came to this; make a new one"
        while not self._errands.empty():
            self._errands.get().done.set_exception(EngineClosedError(why))

    def _tick(self, engine: Engine) -> None:
        events = engine.tick(self._brief)
        if engine.dead is not None and self._on_death is not None:
            self._on_death(engine.dead)
        for event in events:
            if isinstance(event, Done) and engine.runner.profiled:
                log_parts(event.result)
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        find = self._listeners.pop if is_last(event) else self._listeners.get
        with self._lock:
            listener = find(event.request_id, None)
        if listener is None:
            return
        try:
            listener(event)
        except Exception:  # whoever listens: it must not take everybody's engine with it
            log.exception("a listener failed; its request %s is cancelled", event.request_id)
            with self._lock:
                self._listeners.pop(event.request_id, None)
            self.engine.cancel(event.request_id)
