"""Paths that clients know and this server does not have: 404, and what is missing in words.

Some belong to features of other servers (`ABSENT`), some to what models of another kind make (`for_tasks`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.server.errors import refusal
from omnimuse.server.routes.adapters import ELSEWHERE, LOAD, MERGE, SET, UNLOAD, UNMERGE
from omnimuse.server.service import Service

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Handler = Callable[[Request], Awaitable[Response]]
WHERE = MappingProxyType(
    {
        "text-to-image": "POST /v1/images/generations",
        "image-to-image": "POST /v1/images/edits",
        "text-to-video": "POST /v1/videos",
        "image-to-video": "POST /v1/videos with `input_reference`",
        "video-to-video": "POST /v1/videos with `video`",
        "text-to-audio": "POST /v1/audio/generate",
        "audio-to-audio": "POST /v1/audio/generate with `audio`",
        "text-to-text": "POST /v1/chat/completions",
    }
)
"""Where what a model does is asked for."""
_TEXT = "{instead}"
_OPERATOR = "it is chosen when the server starts, and a running one is not changed"
_ADMIN = "it is on the admin plane (`--admin-address`), for the server's operator"
_MEASURED = "measurements have an address of their own here (`--metrics-address`)"
ABSENT = MappingProxyType(
    {
        "/v1/audio/speech": "no text is spoken here; {instead}",
        "/v1/audio/speech/stream": "no text is spoken here; {instead}",
        "/v1/audio/voices": "no text is spoken here; {instead}",
        "/v1/audio/voice_consents": "who agreed to a voice is said with it, in words, at /v1/audio/voices",
        "/v1/audio/transcriptions": "no sound is read here",
        "/v1/audio/translations": "no sound is read here",
        "/v1/realtime": "no conversation is held here; {instead}, with `stream` in steps",
        "/v1/responses": _TEXT,
        "/v1/completions": _TEXT,
        "/v1/embeddings": _TEXT,
        "/v1/score": _TEXT,
        "/v1/rerank": _TEXT,
        "/v1/moderations": "nothing is filtered here",
        "/v1/batches": "requests are sent one by one, and what they share is computed together",
        "/v1/files": "pictures to start from are sent with the request, not stored before",
        "/v1/images/variations": "variations are edits with a `strength`; {instead}",
        "/v1/videos/edits": "videos are changed at POST /v1/videos with `video`, by models that can; {instead}",
        "/v1/videos/extensions": "videos are not made longer; {instead}",
        "/v1/videos/characters": "characters are not kept from video to video",
        "/v1/videos/characters/{what}": "characters are not kept from video to video",
        "/v1/videos/{what}/remix": "videos are not remixed; {instead}",
        "/generate": "it is the path of another server; {instead}",
        LOAD: ELSEWHERE,
        UNLOAD: ELSEWHERE,
        SET: ELSEWHERE,
        MERGE: ELSEWHERE,
        UNMERGE: ELSEWHERE,
        "/update_weights_from_disk": _OPERATOR,
        "/sleep": _ADMIN,
        "/wake_up": _ADMIN,
        "/is_sleeping": _ADMIN,
        "/start_profile": "profiles are made on the admin plane, by the server's operator",
        "/stop_profile": "profiles are made on the admin plane, by the server's operator",
        "/server_info": "what the model can be asked for is at /v1/models, how it is doing at /load and /metrics",
        "/model_info": "what the model can be asked for is at /v1/models",
        "/get_model_info": "what the model can be asked for is at /v1/models",
    }
)
"""Path -> what is missing; `{instead}` is what the model does."""


def routes(service: Service) -> list[Route]:
    """All of them; they come after the paths that exist."""
    instead = does(service)
    measured = {} if service.options.reach.metrics is None else {"/metrics": _MEASURED}
    missing = {**ABSENT, **measured}
    return [Route(path, _answer(why.format(instead=instead)), methods=METHODS) for path, why in missing.items()]


def for_tasks(service: Service, tasks: Sequence[str], handler: Handler) -> Handler:
    """`handler` of a path that is for `tasks`; with a model that does none of them the path is not there."""
    if any(task in tasks for task in service.door.tasks):
        return handler
    return _answer(f"it is for {' and '.join(tasks)}; {does(service)}")


def does(service: Service) -> str:
    """What the model does, and where that is asked for."""
    told = [f"{task} ({WHERE[task]})" if task in WHERE else task for task in service.door.tasks]
    return f"{service.options.model_name} does {', '.join(told)}"


def _answer(why: str) -> Handler:
    async def answer(request: Request) -> Response:
        raise refusal("not_found", f"{request.url.path[:100]} is not served: {why}")

    return answer
