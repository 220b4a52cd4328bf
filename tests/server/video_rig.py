"""The parts of a server of videos in one event loop, with fake workers and a model without weights."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door, Request
from omnimuse.deploy.wire import Form
from omnimuse.media.fetch import FetchRules
from omnimuse.models.wan.spec import SPEC
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.jobs.attempt import JobRules
from omnimuse.server.jobs.book import Jobs
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.row import Idempotency, Job, Kind
from omnimuse.server.jobs.store import JobStore
from omnimuse.server.metrics import Metrics
from omnimuse.server.options import ServeOptions
from omnimuse.server.orders.admission import Admission
from omnimuse.server.routes import videos
from omnimuse.server.service import Lifecycle, Service
from omnimuse.server.traces import NoTracer, Tracer
from tests.server.fake_workers import FakeWorkers

MODEL = "tests/films"
MP4 = Form("MP4")
STEPS = 4
PARAMS = DiffusionParams(seed=1)


@cache
def door(least: int = 0, most: int = 0, *, masks: bool = False) -> Door:
    """Of a small model of videos, from `least` to `most` pictures: 5 frames of 64x32 by default."""
    configs = {"transformer": {"rope_max_seq_len": 64}, "vae": {}, "options": {}}
    defaults = DiffusionParams(height=32, width=64, num_frames=5, num_inference_steps=STEPS)
    made = Door.of(SPEC, configs, MODEL)
    videos = 0 if most else made.limits.max_videos
    refuses = {**made.limits.refuses, **({"strength": "it starts from no video"} if most else {})}
    made = replace(made, defaults=replace(made.defaults, strength=None if most else made.defaults.strength))
    limits = replace(
        made.limits, min_images=least, max_images=most, max_videos=videos, masks_videos=masks, refuses=refuses
    )
    return replace(made, defaults=defaults.over(made.defaults), limits=limits)


def fake_workers(spool: Path, pace: float, ready: bool) -> FakeWorkers:
    """The usual ones."""
    return FakeWorkers(spool, pace, ready=ready)


@dataclass
class Rig:
    """The parts; `submit` makes a job as a route would."""

    service: Service
    workers: FakeWorkers
    store: JobStore
    app: Starlette

    @property
    def jobs(self) -> Jobs:
        return self.service.jobs

    async def submit(
        self,
        prompt: str = "a hill",
        tenant: str = "",
        *,
        idem: Idempotency | None = None,
        kind: Kind = "video",
        params: DiffusionParams = PARAMS,
        timeout: float | None = None,
    ) -> Job:
        asked = make_request(prompt, tenant, params, timeout)
        return await self.jobs.submit(tenant, asked, MP4, kind, {"request": asked.id}, idem)

    async def ended(self, job: Job) -> Job:
        """The job, when it has ended."""
        async for news in self.jobs.subscribe(job):
            if isinstance(news, Job):
                return news
        raise AssertionError("the news ended without the job")

    def kept(self) -> list[str]:
        """The names of all kept files."""
        return sorted(path.name for path in (self.service.options.data / "files").iterdir())

    def spooled(self) -> list[str]:
        return sorted(path.name for path in self.workers.spool.iterdir())


def make_request(
    prompt: str, tenant: str = "", params: DiffusionParams = PARAMS, timeout: float | None = None
) -> Request:
    """A checked request for a video."""
    loop = asyncio.get_running_loop()  # its clock is the one of deadlines
    return door().make_request(Ask(prompt, params, timeout=timeout, tenant=tenant), now=loop.time(), fresh_seed=7)


@asynccontextmanager
async def rig(
    data: Path,
    *,
    pace: float = 0.0,
    limit: int = 1,
    max_queue: int = 256,
    now: Callable[[], float] | None = None,
    fault: Callable[[str], object] = lambda point: None,
    model: str = MODEL,
    reserve: int = 0,
    key_file: Path | None = None,
    ready: bool = True,
    max_jobs: int = 1000,
    max_kept: int = 2**40,
    each: int = 2**31,
    workers: Callable[[Path, float, bool], FakeWorkers] = fake_workers,
    tracer: Tracer | None = None,
    pictures: tuple[int, int] = (0, 0),
    masks: bool = False,
    fetches: FetchRules | None = None,
) -> AsyncIterator[Rig]:
    """A server's parts over the folder `data`, closed in good order at the end; the model takes so many `pictures`, and
    perhaps `masks` over videos; `fetches` says from where.
    """
    options = ServeOptions(data=data, model_name=model, keep=3600.0, max_queue=max_queue, key_file=key_file)
    files = Files(data, reserve=reserve)
    store = await JobStore.open(data / "jobs.sqlite", fault)
    drawing = workers(files.spool, pace, ready)
    metrics, admission, keys = Metrics(model), Admission(options), Keys.load(key_file)
    rules = JobRules(SPEC, options.keep, limit, max_jobs, max_kept, model, each, tracer=tracer or NoTracer())
    if now is not None:
        rules = replace(rules, now=now)
    jobs = Jobs(store, files, drawing, admission, metrics, rules)
    service = Service(
        options, door(*pictures, masks=masks), drawing, admission, files, jobs, keys, metrics, Lifecycle()
    )
    if fetches is not None:
        service = replace(service, uploads=Uploads(rules=fetches))
    await jobs.start()
    try:
        yield Rig(service, drawing, store, protect(videos.routes(service), Rules(keys)))
    finally:
        await jobs.close(0.0)
        await store.close()
        await service.uploads.close()


@asynccontextmanager
async def listening(app: Starlette) -> AsyncIterator[str]:
    """The URL where `app` answers, in this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
