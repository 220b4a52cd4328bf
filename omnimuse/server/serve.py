"""From a configuration to a running server: checks, the socket, the parts, signals, the drain.

Called by `omnimuse serve`. Whatever can be wrong without a model is found before a worker starts: the model's files,
the port, the keys, the job store. The first SIGTERM or SIGINT drains, the second ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import uvicorn

from omnimuse.core.config import Config
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError, EngineClosedError
from omnimuse.deploy.faults import Faults
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.server.app import build_app
from omnimuse.server.greeting import greeting, task_of, url_of
from omnimuse.server.http.connections import Crowd
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.http.watch import stop
from omnimuse.server.jobs.attempt import JobRules
from omnimuse.server.jobs.book import Jobs
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.listening import LAST_WORDS, address_of, listen, make_room_for, serve_beside, uvicorn_config
from omnimuse.server.listening import end as end_serving
from omnimuse.server.metrics import Metrics
from omnimuse.server.options import Address, ServeOptions, told
from omnimuse.server.orders.admission import Admission
from omnimuse.server.routes.adapters import managing
from omnimuse.server.routes.admin import routes as admin_routes
from omnimuse.server.routes.health import measurements
from omnimuse.server.service import Lifecycle, Service
from omnimuse.server.shelf import Shelf
from omnimuse.server.traces import NoTracer, Tracer, open_traces
from omnimuse.server.voices import Voices
from omnimuse.worker.find import Found, find
from omnimuse.worker.warm_up import SMALL, warm_up_ask

logger = logging.getLogger(__name__)

_IDLE_DRAIN = 0.05  # seconds between looks at what is still in progress
PICTURE_JOBS = 8
"""Durable jobs of pictures that one worker draws at once; of videos and of sounds one."""


class Sockets(NamedTuple):
    """Where the server listens: the public interface, and the planes that have addresses of their own."""

    public: socket.socket
    metrics: socket.socket | None = None
    admin: socket.socket | None = None


def serve(config: Config, options: ServeOptions, warm_up: str = SMALL) -> int:
    """Serve until a signal ends it; 0 after a clean end. ConfigError or ModelError if it cannot start.

    `warm_up` is what workers draw before they are ready (`worker/warm_up.py`).
    """
    found = find(config)
    warm_up_ask(warm_up, found.door)  # one that no worker could draw is told now
    logger.info("%s", found.about_defaults)
    make_room_for(options.guard.max_connections)
    reach = options.reach
    with ExitStack() as listeners:

        def opened(address: Address | None) -> socket.socket | None:
            return None if address is None else listeners.enter_context(listen(address))

        listener = listeners.enter_context(listen(reach.address))
        return asyncio.run(
            _serve(found, options, warm_up, Sockets(listener, opened(reach.metrics), opened(reach.admin)))
        )


class Front(uvicorn.Server):
    """uvicorn, with signals that drain first: the first one drains, the second ends."""

    def __init__(self, config: uvicorn.Config, life: Lifecycle) -> None:
        super().__init__(config)
        self._life = life

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for SIGINT and SIGTERM."""
        if self._life.draining:
            self.should_exit = self.force_exit = True
        self._life.draining = True


async def _serve(found: Found, options: ServeOptions, warm_up: str, sockets: Sockets) -> int:
    """Open what lasts, run the server over it, and close it again in the opposite order."""
    asked = allowed_faults(Environment.read().fault, options)
    async with AsyncExitStack() as closings:
        traces = open_traces(options.collector, options.model_name)
        closings.push_async_callback(asyncio.to_thread, traces.close)
        service, pool = await open_parts(closings, found, options, warm_up, asked, traces)
        await service.jobs.start()
        await pool.start()
        planes = (
            (sockets.metrics, [measurements(service)]),
            (sockets.admin, [*admin_routes(service, pool), *managing(service)]),
        )
        for beside, routes in planes:
            if beside is not None:
                closings.push_async_callback(end_serving, await serve_beside(routes, beside))
        await _run(service, pool, sockets)
    return 0


async def open_parts(
    closings: AsyncExitStack,
    found: Found,
    options: ServeOptions,
    warm_up: str = SMALL,
    asked: str = "",
    tracer: Tracer | None = None,
) -> tuple[Service, Pool]:
    """Everything that a server is made of, not yet at work. `closings` learns how to close each part.

    Each is closed, whatever becomes of the others. `asked` are the faults that a test asks for.
    """
    faults = Faults.read(asked)

    async def closed(close: Callable[[], Awaitable[object]]) -> None:
        await close()
        faults.reach("serve.close")

    files, keys, voices = Files(options.data), Keys.load(options.key_file), _voices(closings, found, options)
    metrics, step = Metrics(options.model_name), found.door.limits.frame_step
    admission = Admission(options, width=options.scale.least, frame_step=step)
    plan = PoolPlan(
        replace(found.config, host=replace(found.config.host, replicas=options.scale.least)),  # others come and go
        found.spec,
        files.spool,
        options.scale,
        options.hang,
        asked,
        metrics.restarted,
        metrics.retried,
        partial(_staffed, admission, metrics, options.scale.least),
        warm_up=warm_up,
        lost=metrics.lost,
    )
    store = await JobStore.open(options.data / "jobs.sqlite", faults.reach)
    closings.push_async_callback(closed, store.close)
    uploads = Uploads.of(options, found.door.limits)
    closings.push_async_callback(closed, uploads.close)
    closings.push_async_callback(closed, partial(stop, asyncio.create_task(uploads.tell_lacking())))
    pool = Pool(plan)
    admission.missed = pool.missed
    closings.push_async_callback(closed, partial(pool.close, LAST_WORDS))
    limit = options.scale.most * (PICTURE_JOBS if found.spec.medium == "image" else 1)
    rules = JobRules(
        found.spec,
        options.keep,
        limit,
        options.guard.max_jobs,
        options.guard.max_kept,
        options.model_name,
        max(1, int(limit * options.guard.tenant_share)),
        tracer=tracer or NoTracer(),
    )
    jobs = Jobs(store, files, pool, admission, metrics, rules)
    closings.push_async_callback(closed, partial(jobs.close, 0.0))
    life, tracer, shelf = Lifecycle(), rules.tracer, Shelf(found.config.lora.folder, found.networks)
    door = replace(found.door, adapters=shelf.files, worn=shelf.worn)
    return Service(
        options, door, pool, admission, files, jobs, keys, metrics, life, uploads, tracer, found.taught, shelf, voices
    ), pool


def _voices(closings: AsyncExitStack, found: Found, options: ServeOptions) -> Voices | None:
    """Those that are kept for a model that speaks with the voice of a sound; `closings` learns how to close them."""
    speech = found.door.limits.speech
    if speech is None or not speech.clones:
        return None
    voices = Voices(options.data / "voices.sqlite", speech.voices)
    closings.push_async_callback(voices.close)
    return voices


def _staffed(admission: Admission, metrics: Metrics, least: int, ready: int, coming: int) -> None:
    """So many workers are ready now, and coming."""
    admission.width = max(least, ready)
    metrics.staffed(ready, coming)


def allowed_faults(asked: str, options: ServeOptions) -> str:
    """The faults that a test asks for; ConfigError where others than this machine could meet them."""
    if asked and not options.loopback:
        raise ConfigError(
            f"OMNIMUSE_FAULT makes a server fail on purpose, and --host {options.reach.host} is public; unset it"
        )
    if asked:
        logger.warning("this server fails on purpose: OMNIMUSE_FAULT=%s", asked)
    return asked


async def _run(service: Service, pool: Pool, sockets: Sockets) -> None:
    """Answer requests until a signal; ModelError or ConfigError when no worker can be started the first time."""
    guard = service.options.guard
    has_addresses = service.options.reach.uds is None
    each = guard.max_per_address if has_addresses else guard.max_connections
    front = Front(uvicorn_config(build_app(service), Crowd(guard.max_connections, each)), service.life)
    serving = asyncio.create_task(front.serve([sockets.public]))
    announcing = asyncio.create_task(_announce(pool, service, sockets))
    draining = asyncio.create_task(_drain(service, pool, front))
    draining.add_done_callback(_tell_failure)
    try:
        await asyncio.wait([serving, announcing], return_when=asyncio.FIRST_COMPLETED)
        if announcing.done() and announcing.exception() is not None:
            front.should_exit = front.force_exit = True
            announcing.result()
        await serving
    finally:
        for task in (announcing, draining):
            task.cancel()
        await asyncio.gather(serving, announcing, draining, return_exceptions=True)


async def _drain(service: Service, pool: Pool, front: Front) -> None:
    """Once draining: wait for what is in progress, at most the drain's time, then let the server end.

    Jobs that wait or still run stay in the store for the next start; other requests are told that the server ends.
    """
    while not service.life.draining:
        await asyncio.sleep(_IDLE_DRAIN)
    began, count = time.monotonic(), service.admission.load().count
    given = f"{count} in progress get {service.options.drain:g} s"
    if service.workers.asleep:
        given += ", and go on when the weights are back (POST /wake_up on the admin plane)"
    logger.warning("draining: %s; a second signal ends at once", given)
    end = began + service.options.drain
    try:
        await service.jobs.hold()
        while service.admission.load().count and time.monotonic() < end:
            await asyncio.sleep(_IDLE_DRAIN)
        left = service.admission.load().count
        how = f"{left} in progress are ended now" if left else "everything in progress is done"
        logger.warning("drained in %.1f s: %s; the server ends", time.monotonic() - began, how)
        await service.jobs.close(0.0)
        await pool.close(LAST_WORDS)
    finally:
        front.should_exit = True


def _tell_failure(draining: asyncio.Task[None]) -> None:
    """Log why a drain failed: the server ends all the same, and nobody else would hear of it."""
    if not draining.cancelled() and (error := draining.exception()) is not None:
        logger.error("the drain failed, and the server ends without it", exc_info=error)


async def _announce(pool: Pool, service: Service, sockets: Sockets) -> None:
    """Say where the server is and what has an address of its own, and when it is ready, how to use it."""
    began = time.monotonic()
    options, address = service.options, address_of(sockets.public)
    where = f"it listens on {address}" if isinstance(address, Path) else f"the page is at {url_of(address)}"
    print(f"omnimuse: loading {options.model_name}; {where}", flush=True)
    for what, listener in (("measurements are", sockets.metrics), ("admin plane is", sockets.admin)):
        if listener is not None:
            beside = address_of(listener)
            print(f"omnimuse: the {what} at {told(beside) if isinstance(beside, Path) else url_of(beside)}", flush=True)
    with suppress(EngineClosedError):  # a signal came first
        await pool.wait_ready()
        task = task_of(service.door.spec.tasks)
        print(greeting(address, options, pool.place, time.monotonic() - began, task), flush=True)
