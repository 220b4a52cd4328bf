"""Adapters by name: what is registered, and registering more while the server runs.

The paths and fields are those of vLLM and SGLang. They are on the admin plane, and on the public interface only where
no other machine can reach it: who registers adapters changes what all clients may name. Files come from the folder that
the operator chose and from nowhere else.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.errors import RequestError
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.openapi import Operation
from omnimuse.server.service import Service
from omnimuse.server.shelf import Shelf

LOAD, UNLOAD, LIST = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/list_loras"
ELSEWHERE = "adapters are registered on the admin plane (--admin-address), by the server's operator"

OPERATIONS = (Operation("GET", LIST, "The adapters that requests may name.", responses={200: "application/json"}),)


def routes(service: Service) -> list[Route]:
    """What of it is public."""
    public = managing(service.shelf) if service.options.loopback and not service.keys.required else []
    return [Route(LIST, _listed(service.shelf)), *public]


def managing(shelf: Shelf) -> list[Route]:
    """The endpoints that change what is registered."""

    async def load(request: Request) -> Response:
        """POST {"lora_name": "ink", "lora_path": "ink.safetensors"}"""
        body = await _body(request, ("lora_name", "lora_path"))
        try:
            shelf.load(body["lora_name"], body["lora_path"])
        except RequestError as error:
            raise refusal("invalid_value", str(error), error.param) from None
        return _told(shelf)

    async def unload(request: Request) -> Response:
        """POST {"lora_name": "ink"}"""
        body = await _body(request, ("lora_name",))
        try:
            shelf.unload(body["lora_name"])
        except RequestError as error:
            raise refusal("not_found", str(error), error.param) from None
        return _told(shelf)

    return [Route(LOAD, load, methods=["POST"]), Route(UNLOAD, unload, methods=["POST"])]


def _listed(shelf: Shelf) -> Any:
    async def listed(request: Request) -> Response:
        return _told(shelf)

    return listed


def _told(shelf: Shelf) -> Response:
    """Names with their files, as they are called in the folder."""
    return JSONResponse(
        {"loaded_adapters": [{"nickname": name, "path": path} for name, path in sorted(shelf.files.items())]}
    )


async def _body(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The fields of a JSON body, all of them texts; ApiError for one that is missing or unknown."""
    body = await read_json(request)
    for name in body:
        if name not in known:
            raise refusal(
                "unknown_parameter", f"there is no field {name!r:.80} here; known are {', '.join(known)}", name
            )
    for name in known:
        if not isinstance(body.get(name), str):
            raise refusal("invalid_value", f"{name} must be a text", name)
    return body
