"""Paths that clients of other servers know and this one does not have: 404, and what is missing in words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.server.errors import refusal
from omnimuse.server.service import Service

METHODS = ["GET", "POST", "PUT", "DELETE"]
_TEXT = "the models here draw, and answer with no text; pictures in a chat are made by POST /v1/chat/completions"
_OPERATOR = "it is chosen when the server starts, and a running one is not changed"
ABSENT = MappingProxyType(
    {
        "/v1/audio/speech": "no text is spoken here",
        "/v1/audio/voices": "no text is spoken here",
        "/v1/audio/transcriptions": "no sound is read here",
        "/v1/audio/translations": "no sound is read here",
        "/v1/realtime": "there are no WebSockets and no speech; a stream of pictures is made with `stream: true`",
        "/v1/responses": _TEXT,
        "/v1/completions": _TEXT,
        "/v1/embeddings": _TEXT,
        "/v1/score": _TEXT,
        "/v1/rerank": _TEXT,
        "/v1/moderations": "nothing is filtered here",
        "/v1/batches": "many requests are sent one by one: what they share is computed together",
        "/v1/files": "pictures to start from are sent with the request, not stored before",
        "/v1/images/variations": "variations do not exist any more; use /v1/images/edits with a `strength`",
        "/v1/videos/edits": "videos are not edited; make a new one with POST /v1/videos",
        "/v1/videos/extensions": "videos are not made longer; make a new one with POST /v1/videos",
        "/v1/videos/characters": "characters are not kept from video to video",
        "/v1/videos/characters/{what}": "characters are not kept from video to video",
        "/v1/videos/{what}/remix": "videos are not remixed; make a new one with POST /v1/videos",
        "/generate": "pictures are made by POST /v1/images/generations",
        "/v1/load_lora_adapter": "LoRA adapters are not loaded",
        "/v1/unload_lora_adapter": "LoRA adapters are not loaded",
        "/v1/set_lora": "LoRA adapters are not loaded",
        "/v1/merge_lora_weights": "LoRA adapters are not loaded",
        "/v1/unmerge_lora_weights": "LoRA adapters are not loaded",
        "/update_weights_from_disk": _OPERATOR,
        "/sleep": _OPERATOR,
        "/wake_up": _OPERATOR,
        "/start_profile": "profiles are not made by a running server",
        "/stop_profile": "profiles are not made by a running server",
        "/server_info": "what the model can be asked for is at /v1/models, how it is doing at /load and /metrics",
        "/model_info": "what the model can be asked for is at /v1/models",
        "/get_model_info": "what the model can be asked for is at /v1/models",
    }
)
"""Path -> what is missing, and what there is instead."""


def routes(service: Service) -> list[Route]:
    """All of them; they come after the paths that exist."""
    return [Route(path, _answer(why), methods=METHODS) for path, why in ABSENT.items()]


def _answer(why: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raise refusal("not_found", f"{request.url.path[:100]} is not served: {why}")

    return answer
