"""The whole app with its real edge, jobs and store, on a free port in a thread; only the workers are fake."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import cast

import uvicorn
from openai import OpenAI
from starlette.applications import Starlette

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.request import Door
from omnimuse.loader.identity import Taught
from omnimuse.models.qwen3_text.spec import SPEC
from omnimuse.server.app import build_app
from omnimuse.server.http.connections import Connection
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.jobs.attempt import JobRules
from omnimuse.server.jobs.book import Jobs
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.metrics import Metrics
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.admission import Admission
from omnimuse.server.service import Lifecycle, Service
from omnimuse.server.shelf import Shelf
from omnimuse.worker.find import find
from tests.server.fake_workers import FakeWorkers

MODEL = "omnimuse/shapes"


@cache
def shapes() -> Door:
    """The door of the bundled model."""
    return find(Config(ModelConfig(MODEL))).door


@cache
def writer() -> Door:
    """The door of a model that writes, without weights."""
    return Door.of(SPEC, {"model": {"max_position_embeddings": 64}, "options": {}}, "tests/writer")


@dataclass
class Running:
    """A server that answers at `url`; `loop` is its event loop."""

    url: str
    service: Service
    workers: FakeWorkers
    loop: asyncio.AbstractEventLoop

    def client(self, retries: int = 0) -> OpenAI:
        """The official client; to be closed."""
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=retries, timeout=30)


@dataclass
class _Shared:
    ready: threading.Event = field(default_factory=threading.Event)
    running: Running | None = None
    server: uvicorn.Server | None = None
    error: BaseException | None = None


@contextmanager
def picture_server(
    data: Path,
    *,
    door: Door | None = None,
    change: Callable[[ServeOptions], ServeOptions] = lambda options: options,
    uploads: Callable[[], Uploads] | None = None,
) -> Iterator[Running]:
    """A server with its files in `data`; `uploads` makes the reader of pictures, where the usual one does not serve."""
    options = change(ServeOptions(data=data, model_name=MODEL))
    shared = _Shared()
    opened = door or shapes()
    reader = uploads or (lambda: Uploads.of(options, opened.limits))
    thread = threading.Thread(target=lambda: asyncio.run(_serve(options, opened, reader, shared)))
    thread.start()
    try:
        assert shared.ready.wait(30)
        if shared.error is not None:
            raise shared.error
        assert shared.running is not None
        yield shared.running
    finally:
        if shared.server is not None:
            shared.server.should_exit = True
        thread.join(30)


async def _serve(options: ServeOptions, door: Door, reader: Callable[[], Uploads], shared: _Shared) -> None:
    try:
        await _run(options, door, reader(), shared)
    except BaseException as error:
        shared.error = error
        raise
    finally:
        shared.ready.set()


async def _run(options: ServeOptions, door: Door, uploads: Uploads, shared: _Shared) -> None:
    async with serving(options, door, uploads) as service:
        app = build_app(service)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = uvicorn.Config(app, http=Connection, lifespan="off", log_level="error")
            shared.server = uvicorn.Server(replace_timeout(config))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            workers = cast(FakeWorkers, service.workers)
            shared.running = Running(url, service, workers, asyncio.get_running_loop())
            answering = asyncio.create_task(shared.server.serve([listener]))
            while not shared.server.started and not answering.done():
                await asyncio.sleep(0.01)
            shared.ready.set()
            await answering


@asynccontextmanager
async def serving(options: ServeOptions, door: Door, uploads: Uploads) -> AsyncIterator[Service]:
    """All parts of a server but its socket, with fake workers."""
    kept = Files(options.data, reserve=0)
    store = await JobStore.open(options.data / "jobs.sqlite")
    workers, admission, metrics = FakeWorkers(kept.spool), Admission(options), Metrics(options.model_name)
    jobs = Jobs(
        store, kept, workers, admission, metrics, JobRules(door.spec, options.keep, max_jobs=options.guard.max_jobs)
    )
    keys = Keys.load(options.key_file)
    service = Service(options, door, workers, admission, kept, jobs, keys, metrics, Lifecycle(), uploads)
    await jobs.start()
    try:
        yield service
    finally:
        await uploads.close()
        await jobs.close(0)
        await store.close()


@asynccontextmanager
async def service_in(
    data: Path,
    change: Callable[[ServeOptions], ServeOptions] = lambda options: options,
    door: Door | None = None,
    taught: Taught | None = None,
    shelf: Shelf | None = None,
) -> AsyncIterator[tuple[Starlette, Service]]:
    """The whole app on the event loop of the test, to be called without a socket."""
    shelf = shelf or Shelf(None)
    options, opened = change(ServeOptions(data=data, model_name=MODEL)), door or shapes()
    opened = replace(opened, adapters=shelf.files, worn=shelf.worn)
    async with serving(options, opened, Uploads.of(options, opened.limits)) as service:
        service = replace(service, taught=taught, shelf=shelf)
        yield build_app(service), service


def replace_timeout(config: uvicorn.Config) -> uvicorn.Config:
    """`config` that does not wait for clients at the end."""
    config.timeout_graceful_shutdown = 1
    return config
