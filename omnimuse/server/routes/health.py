"""Is it alive, is it ready, how much has it to do: for load balancers, monitors and people.

`/livez` says that the process answers, `/readyz` that a request would be served now, with the reasons if not. The
other names are what neighbours of this server use for the same two questions.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse import __version__
from omnimuse.server.openapi import Operation
from omnimuse.server.protocol.health import Company, LoadReport, Status, Version
from omnimuse.server.service import Service

OPERATIONS = (
    Operation("GET", "/livez", "Whether the process answers.", responses={200: Status}, open=True),
    Operation("GET", "/readyz", "Whether a request would be served now.", responses={200: Status}, open=True),
    Operation("GET", "/version", "The version of the server.", responses={200: Version}, open=True),
    Operation(
        "GET", "/load", "What is in progress, and how long a new request would wait.", responses={200: LoadReport}
    ),
    Operation("GET", "/metrics", "Measurements, for Prometheus.", responses={200: "text/plain"}),
)


def routes(service: Service) -> list[Route]:
    """The endpoints of health, load, version and metrics."""

    async def alive(request: Request) -> Response:
        return JSONResponse(Status(status="alive").model_dump())

    async def ready(request: Request) -> Response:
        reasons = unready(service)
        status = Status(status="unready" if reasons else "ready", reasons=reasons)
        return JSONResponse(status.model_dump(), 503 if reasons else 200)

    async def version(request: Request) -> Response:
        return JSONResponse(Version(version=__version__).model_dump())

    async def load(request: Request) -> Response:
        return JSONResponse(describe_load(service).model_dump())

    answers = {
        alive: ("/livez", "/v2/health/live"),
        ready: ("/readyz", "/health", "/ping", "/v2/health/ready"),
        version: ("/version",),
        load: ("/load",),
    }
    own = [] if service.options.reach.metrics is not None else [measurements(service)]
    return [*(Route(path, answer) for answer, paths in answers.items() for path in paths), *own]


def measurements(service: Service) -> Route:
    """The endpoint of metrics: among the others, or alone at an address of its own."""

    async def metrics(request: Request) -> Response:
        asleep = service.workers.asleep
        service.metrics.level(service.admission.load().count, bool(service.keys.trouble), asleep)
        service.metrics.weigh(service.workers.weights)
        service.metrics.wear(*service.workers.adapters)
        content, kind = service.metrics.render()
        return Response(content, media_type=kind)

    return Route("/metrics", metrics)


def unready(service: Service) -> list[str]:
    """Why a new request would not be served now; empty when it would."""
    reasons = []
    if service.life.draining:
        reasons.append("the server is shutting down")
    if service.workers.broken:
        reasons.append("no worker can be started")
    elif not service.workers.ready:
        reasons.append("no worker is ready yet")
    for name in service.workers.away:
        reasons.append(f"pool {name} is being started again")
    if service.workers.asleep:
        reasons.append("the weights are away until POST /wake_up on the admin plane")
    if not service.files.storage_ok():
        reasons.append("the disk is nearly full")
    if service.keys.trouble:
        reasons.append(service.keys.trouble)
    return reasons + service.jobs.trouble


def describe_load(service: Service) -> LoadReport:
    """What is in progress and how long a new request would wait."""
    load = service.admission.load()
    return LoadReport(
        requests=load.count,
        expected_wait_seconds=load.expected_wait,
        max_queue=service.options.max_queue,
        draining=service.life.draining,
        company=[Company(**each._asdict()) for each in service.workers.company],
    )
