"""From a configuration to a running server: checks, the socket, the parts, signals, the drain.

Called by `omnimuse serve`. Whatever can be wrong without a model is found before a worker starts: the model's files,
the port, the keys, the job store. The first SIGTERM or SIGINT drains, the second ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from types import FrameType

import uvicorn
from uvicorn.server import ServerState

from omnimuse.core.config import Config, Environment
from omnimuse.core.errors import ConfigError, EngineClosedError
from omnimuse.deploy.faults import Faults
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.server.app import build_app
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection, Crowd
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.http.watch import stop
from omnimuse.server.jobs.attempt import JobRules
from omnimuse.server.jobs.book import Jobs
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.metrics import Metrics
from omnimuse.server.options import ServeOptions, is_loopback
from omnimuse.server.orders.admission import Admission
from omnimuse.server.routes.health import measurements
from omnimuse.server.service import Lifecycle, Service
from omnimuse.worker.find import Found, find
from omnimuse.worker.warm_up import SMALL, warm_up_ask

logger = logging.getLogger(__name__)

_IDLE_DRAIN = 0.05  # seconds between looks at what is still in progress
PICTURE_JOBS = 8
"""Durable jobs of pictures that one worker draws at once; of videos it draws one."""
LAST_WORDS = 5.0
"""Seconds that answers under way get once the drain is over."""


def serve(config: Config, options: ServeOptions, warm_up: str = SMALL) -> int:
    """Serve until a signal ends it; 0 after a clean end. ConfigError or ModelError if it cannot start.

    `warm_up` is what workers draw before they are ready (`worker/warm_up.py`).
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    found = find(config)
    if found.spec.medium == "audio":
        raise ConfigError(f"{found.folder.id} makes sound, which is not served yet; use `omnimuse generate` or Python")
    warm_up_ask(warm_up, found.door)  # one that no worker could draw is told now
    logger.info("%s", found.about_defaults)
    make_room_for(options.guard.max_connections)
    with ExitStack() as listeners:
        listener = listeners.enter_context(listen(options.host, options.port))
        address = options.guard.metrics
        measured = None if address is None else listeners.enter_context(listen(*address))
        return asyncio.run(_serve(found, options, warm_up, listener, measured))


def make_room_for(connections: int) -> None:
    """Let this process open what so many connections need; ConfigError where the system does not let it.

    Each has a socket and may have a file open; the rest is the server's own.
    """
    needed = 2 * connections + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{connections} connections need {needed} open files, and this process may have {hard}; raise the limit "
            "(ulimit -n, LimitNOFILE), or choose fewer with --max-connections"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port (0 takes a free one)"
        ) from None
    return listener


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


async def _serve(
    found: Found, options: ServeOptions, warm_up: str, listener: socket.socket, measured: socket.socket | None
) -> int:
    """Open what lasts, run the server over it, and close it again in the opposite order."""
    asked = allowed_faults(Environment.read().fault, options)
    async with AsyncExitStack() as closings:
        service, pool = await open_parts(closings, found, options, warm_up, asked)
        await service.jobs.start()
        await pool.start()
        if measured is not None:
            closings.push_async_callback(end_measuring, await measure(service, measured))
        await _run(service, pool, listener)
    return 0


async def open_parts(
    closings: AsyncExitStack, found: Found, options: ServeOptions, warm_up: str = SMALL, asked: str = ""
) -> tuple[Service, Pool]:
    """Everything that a server is made of, not yet at work. `closings` learns how to close each part.

    Each is closed, whatever becomes of the others. `asked` are the faults that a test asks for.
    """
    faults = Faults.read(asked)

    async def closed(close: Callable[[], Awaitable[object]]) -> None:
        await close()
        faults.reach("serve.close")

    files, keys = Files(options.data), Keys.load(options.key_file)
    metrics, admission = Metrics(options.model_name), Admission(options, width=options.replicas)
    plan = PoolPlan(
        found.config,
        found.spec,
        files.spool,
        options.replicas,
        options.hang,
        asked,
        metrics.restarted,
        metrics.retried,
        warm_up=warm_up,
    )
    store = await JobStore.open(options.data / "jobs.sqlite", faults.reach)
    closings.push_async_callback(closed, store.close)
    uploads = Uploads.of(options, found.door.limits)
    closings.push_async_callback(closed, uploads.close)
    closings.push_async_callback(closed, partial(stop, asyncio.create_task(uploads.tell_lacking())))
    pool = Pool(plan)
    closings.push_async_callback(closed, partial(pool.close, LAST_WORDS))
    together = 1 if found.spec.makes_video else PICTURE_JOBS
    limit = options.replicas * together
    rules = JobRules(
        found.spec,
        options.keep,
        limit,
        options.guard.max_jobs,
        options.guard.max_kept,
        options.model_name,
        max(1, int(limit * options.guard.tenant_share)),
    )
    jobs = Jobs(store, files, pool, admission, metrics, rules)
    closings.push_async_callback(closed, partial(jobs.close, 0.0))
    return Service(options, found.door, pool, admission, files, jobs, keys, metrics, Lifecycle(), uploads), pool


def allowed_faults(asked: str, options: ServeOptions) -> str:
    """The faults that a test asks for; ConfigError where others than this machine could meet them."""
    if asked and not options.loopback:
        raise ConfigError(
            f"OMNIMUSE_FAULT makes a server fail on purpose, and --host {options.host} is public; unset it"
        )
    if asked:
        logger.warning("this server fails on purpose: OMNIMUSE_FAULT=%s", asked)
    return asked


async def measure(service: Service, listener: socket.socket) -> asyncio.Server:
    """Serve the measurements alone, at an address of their own and without a key."""
    host = listener.getsockname()[0]
    app = protect([measurements(service)], Rules(Keys.load(None), local_only=is_loopback(host)))
    config = _uvicorn(app, Crowd(64, 64))
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        sock=listener,
    )
    return server


async def end_measuring(server: asyncio.Server) -> None:
    """Close what `measure` opened."""
    server.close()


async def _run(service: Service, pool: Pool, listener: socket.socket) -> None:
    """Answer requests until a signal; ModelError or ConfigError when no worker can be started the first time."""
    guard = service.options.guard
    front = Front(_uvicorn(build_app(service), Crowd(guard.max_connections, guard.max_per_address)), service.life)
    serving = asyncio.create_task(front.serve([listener]))
    announcing = asyncio.create_task(_announce(pool, service.options, listener))
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


def _uvicorn(app: object, crowd: Crowd) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=partial(Connection, crowd=crowd),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(LAST_WORDS),
    )


async def _drain(service: Service, pool: Pool, front: Front) -> None:
    """Once draining: wait for what is in progress, at most the drain's time, then let the server end.

    Jobs that wait or still run stay in the store for the next start; other requests are told that the server ends.
    """
    while not service.life.draining:
        await asyncio.sleep(_IDLE_DRAIN)
    logger.warning("finishing what is in progress; a second signal ends at once")
    end = time.monotonic() + service.options.drain
    try:
        await service.jobs.hold()
        while service.admission.load().count and time.monotonic() < end:
            await asyncio.sleep(_IDLE_DRAIN)
        await service.jobs.close(0.0)
        await pool.close(LAST_WORDS)
    finally:
        front.should_exit = True


def _tell_failure(draining: asyncio.Task[None]) -> None:
    """Log why a drain failed: the server ends all the same, and nobody else would hear of it."""
    if not draining.cancelled() and (error := draining.exception()) is not None:
        logger.error("the drain failed, and the server ends without it", exc_info=error)


async def _announce(pool: Pool, options: ServeOptions, listener: socket.socket) -> None:
    """Say where the server is, and when it is ready, how to use it."""
    began = time.monotonic()
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"omnimuse: loading {options.model_name}; the page is at {url}", flush=True)
    with suppress(EngineClosedError):  # a signal came first
        await pool.wait_ready()
        print(greeting(url, options, pool.place, time.monotonic() - began), flush=True)


def greeting(url: str, options: ServeOptions, place: dict[str, str], seconds: float) -> str:
    """What is printed when a worker is ready: the URL, a curl line and Python lines that work as pasted."""
    key = "" if options.key_file is None else " -H 'Authorization: Bearer YOUR_KEY'"
    secret = "none" if options.key_file is None else "YOUR_KEY"
    body = f'{{"prompt": "a red circle on a blue background", "model": "{options.model_name}"}}'
    where = f"{place.get('dtype', '')} on {place.get('device', '')}"
    return f"""omnimuse: ready in {seconds:.1f} s ({where}), {options.replicas} worker(s)

  page    {url}/
  curl    curl -s {url}/v1/images/generations -H 'Content-Type: application/json'{key} \\
            -d '{body}' | python3 -c 'import sys, json, base64; \\
            open("picture.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'
  python  from openai import OpenAI
          client = OpenAI(base_url="{url}/v1", api_key="{secret}")
          picture = client.images.generate(model="{options.model_name}", prompt="a red circle")

Ctrl-C stops it."""
