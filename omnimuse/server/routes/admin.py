"""What an operator may do while the server runs: look at the workers, drain, change the log level, record a profile,
and let the weights leave memory for a while, by the names that vLLM has for it.

A plane of its own (`--admin-address`), which only this machine can reach; nothing of it is on the public interface, and
it asks for no key. What changes something is a POST, so no page of another site can do it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from omnimuse import __version__
from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ConfigError
from omnimuse.deploy.pool import ReplicaStatus
from omnimuse.server import log
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.routes.health import describe_load, unready
from omnimuse.server.service import Service

logger = logging.getLogger(__name__)

SECONDS, LONGEST = 5, 60
"""Of a recording: usual, and at most."""
MOST = 100
"""Requests in one."""


class Staff(Protocol):
    """The workers, as this plane sees them."""

    def status(self) -> list[ReplicaStatus]:
        """How every worker is."""

    async def profile(self, index: int, seconds: float, requests: int = 0) -> Path:
        """Where a recording of `seconds` of a worker's work is, or of the next `requests`; the caller's to remove."""

    @property
    def asleep(self) -> bool:
        """Whether the weights are away, and requests wait."""

    async def sleep(self, asleep: bool) -> int:
        """Have the weights leave memory, or come back; how many bytes left."""


def routes(service: Service, staff: Staff) -> list[Route]:
    """The endpoints of the admin plane."""

    async def status(request: Request) -> Response:
        """GET /admin/status"""
        return JSONResponse(
            {
                "version": __version__,
                "model": service.options.model_name,
                "log_level": log.level(),
                "unready": unready(service),
                "load": describe_load(service).model_dump(),
                "asleep": staff.asleep,
                "workers": [asdict(worker) for worker in staff.status()],
            }
        )

    async def drain(request: Request) -> Response:
        """POST /admin/drain: as SIGTERM"""
        if not service.life.draining:
            logger.warning("the drain was asked for on the admin plane")
        service.life.draining = True
        return JSONResponse({"draining": True, "in_progress": service.admission.load().count}, 202)

    async def profile(request: Request) -> Response:
        """POST /admin/profile {"seconds": 5, "worker": 0}, or {"requests": 1} of the next: a Chrome trace"""
        body = await _body(request, {"seconds": (int, float), "worker": (int,), "requests": (int,)})
        if not 0 < (requests := body.get("requests", 1)) <= MOST:
            raise refusal("invalid_value", f"requests={requests} is not allowed; use 1 to {MOST}", "requests")
        seconds = body.get("seconds", LONGEST if "requests" in body else SECONDS)
        if not 0 < seconds <= LONGEST:
            raise refusal("invalid_value", f"seconds={seconds} is not allowed; use above 0, up to {LONGEST}", "seconds")
        try:
            path = await staff.profile(body.get("worker", 0), seconds, body.get("requests", 0))
        except ConfigError as error:
            raise refusal("invalid_value", str(error), "worker") from None
        return FileResponse(
            path,
            media_type="application/gzip",
            filename=path.name,
            background=BackgroundTask(path.unlink, missing_ok=True),
        )

    async def log_level(request: Request) -> Response:
        """POST /admin/log-level {"level": "debug"}"""
        body = await _body(request, {"level": (str,)})
        try:
            log.set_level(log.check_level(body.get("level", "")))
        except ConfigError as error:
            raise refusal("invalid_value", str(error), "level") from None
        logger.warning("the log level is %s now", log.level())
        return JSONResponse({"level": log.level()})

    return [
        *_rest(staff),
        Route("/admin/status", status),
        Route("/admin/drain", drain, methods=["POST"]),
        Route("/admin/profile", profile, methods=["POST"]),
        Route("/admin/log-level", log_level, methods=["POST"]),
    ]


def _rest(staff: Staff) -> list[Route]:
    """The endpoints by which weights leave memory and come back, by vLLM's names."""

    async def sleep(request: Request) -> Response:
        """POST /sleep?level=1&mode=keep: requests, also those in progress, wait until the weights are back"""
        await _refuse_words(request, {"level": ("1",), "mode": ("keep",)})
        return await rest(True)

    async def wake_up(request: Request) -> Response:
        """POST /wake_up?tags=weights"""
        await _refuse_words(request, {"tags": ("weights",)})
        return await rest(False)

    async def rest(asleep: bool) -> Response:
        try:
            size = await staff.sleep(asleep)
        except ConfigError as error:
            raise refusal("invalid_value", str(error)) from None
        logger.warning("the weights are %s", f"away: {told_bytes(size)} left memory" if asleep else "back")
        return JSONResponse({"is_sleeping": staff.asleep, "bytes": size})

    async def is_sleeping(request: Request) -> Response:
        """GET /is_sleeping"""
        return JSONResponse({"is_sleeping": staff.asleep})

    return [
        Route("/sleep", sleep, methods=["POST"]),
        Route("/wake_up", wake_up, methods=["POST"]),
        Route("/is_sleeping", is_sleeping),
    ]


async def _refuse_words(request: Request, known: Mapping[str, tuple[str, ...]]) -> None:
    """ApiError for a query, or a JSON body, that says anything else than what is done here."""
    body = await read_json(request) if await request.body() else {}
    for name, value in [*request.query_params.multi_items(), *((name, str(said)) for name, said in body.items())]:
        if name not in known:
            raise refusal("unknown_parameter", f"there is no {name!r} here; known are {', '.join(known)}", name)
        if value not in known[name]:
            allowed = " or ".join(known[name])
            raise refusal("invalid_value", f"{name}={value[:50]} is not done here; use {name}={allowed}", name)


async def _body(request: Request, known: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The fields of a JSON body; ApiError for one that is not `known`, or of another kind."""
    body = await read_json(request)
    for name, value in body.items():
        if name not in known:
            raise refusal("unknown_parameter", f"there is no field {name!r} here; known are {', '.join(known)}", name)
        if isinstance(value, bool) or not isinstance(value, known[name]):
            kind = "a number" if float in known[name] else "a whole number" if int in known[name] else "a text"
            raise refusal("invalid_value", f"{name}={value!r:.80} is not allowed; use {kind}", name)
    return body
