"""The whole HTTP application: every group of endpoints behind the edge, and the description of them all."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from omnimuse import __version__
from omnimuse.server.http.budget import Bodies, Rates
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.edge import protect
from omnimuse.server.http.strict_json import MAX_JSON
from omnimuse.server.openapi import document
from omnimuse.server.orders.gate import Gate
from omnimuse.server.routes import (
    absent,
    adapters,
    audio,
    chat,
    files,
    health,
    hearing,
    images,
    models,
    playground,
    realtime,
    speech,
    speech_live,
    talk,
    videos,
    voices,
)
from omnimuse.server.routes.absent import Handler
from omnimuse.server.service import Service
from omnimuse.server.translate.parts import able

DESCRIBED = (health, models, adapters, images, videos, audio, chat, files)
"""The modules whose endpoints are an interface; each lists them as `OPERATIONS`."""

SPEAKING = (health, models, adapters, images, videos, speech, speech_live, voices, audio, chat, files)
"""The same where it speaks."""

WRITING = (health, models, adapters, images, videos, audio, talk, realtime, files)
"""The same where the model writes: a chat is another thing then."""

ALLROUND = (*DESCRIBED, realtime)
"""The same where it draws and writes with one network: a chat says which, and a conversation in events is in words."""

LISTENING = (*WRITING, hearing)
"""The same where it hears, too."""

PICTURED = frozenset({chat.PATH, images.EDITS, speech.PATH, videos.PATH, f"{videos.PATH}/sync"})
"""The paths whose JSON may have pictures or sounds in it."""


def build_app(service: Service) -> Starlette:
    """The app that serves `service`."""
    elsewhere = {"/metrics"} if service.options.reach.metrics is not None else set()
    groups: Sequence[ModuleType] = DESCRIBED
    if service.door.spec.writes:
        groups = LISTENING if "audio" in able(service.door) else WRITING
    elif service.door.limits.speech is not None:
        groups = SPEAKING
    elif service.door.spec.converses:
        groups = ALLROUND
    operations = [made for group in groups for made in group.OPERATIONS if made.path not in elsewhere]
    described = document(operations, __version__)
    guard = service.options.guard
    each = guard.max_bodies // 2 if service.keys.required else guard.max_bodies
    gate = Gate(service.workers, service.files, service.admission, service.metrics)
    rules = Rules(
        keys=service.keys,
        max_body=guard.max_body,
        max_json=MAX_JSON,
        pictured=PICTURED,
        bodies=Bodies(guard.max_bodies, max(guard.max_body, each)),
        rates=Rates(guard.per_minute),
        hosts=frozenset(service.options.reach.allowed_hosts),
        origins=frozenset(service.options.reach.origins),
        local_only=service.options.loopback,
        draining=lambda: service.life.draining,
        drawing=frozenset(operation.path for operation in operations if operation.body is not None),
        check_room=gate.check_room,
    )
    routes = [route for group in (*groups, playground) for route in group.routes(service)]
    missing = absent.routes(service)  # of what is there by one method, none is missing
    return protect([*_of_other_methods(routes), *routes, *missing, _description(described)], rules)


def _of_other_methods(routes: Sequence[BaseRoute]) -> list[Route]:
    """For each path without a name in it the methods that it does not know: else `GET /v1/images/generations` would ask
    for the picture of that id.
    """
    able: dict[str, set[str]] = {}
    for route in routes:
        if isinstance(route, Route) and "{" not in route.path:
            able.setdefault(route.path, set()).update(route.methods or ())

    def refusing(known: set[str]) -> Handler:
        async def refuse(request: Request) -> Response:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(known))})

        return refuse

    return [
        Route(path, refusing(known), methods=sorted(others))
        for path, known in able.items()
        if (others := set(absent.METHODS) - known)
    ]


def _description(described: dict[str, Any]) -> Route:
    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    return Route("/openapi.json", openapi)
