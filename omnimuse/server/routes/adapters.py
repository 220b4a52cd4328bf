"""Adapters by name: what is registered, registering more while the server runs, and setting some for everybody.

The paths and fields are those of vLLM and SGLang. They are on the admin plane, and on the public interface only where
no other machine can reach it: who registers adapters changes what all clients may name. Files come from the folder that
the operator chose and from nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.errors import RequestError
from omnimuse.core.loras import Lora, component_of
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.openapi import Operation
from omnimuse.server.service import Service
from omnimuse.server.shelf import Shelf

LOAD, UNLOAD, LIST = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/list_loras"
SET, MERGE, UNMERGE = "/v1/set_lora", "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"
ELSEWHERE = "adapters are registered and set on the admin plane (--admin-address), by the server's operator"

OPERATIONS = (Operation("GET", LIST, "The adapters that requests may name.", responses={200: "application/json"}),)


def routes(service: Service) -> list[Route]:
    """What of it is public."""
    public = managing(service) if service.options.loopback and not service.keys.required else []
    return [Route(LIST, _listed(service.shelf)), *public]


def managing(service: Service) -> list[Route]:
    """The endpoints that change what is registered, and what is set, which workers read first."""
    shelf = service.shelf

    async def load(request: Request) -> Response:
        """POST {"lora_name": "ink", "lora_path": "ink.safetensors"}"""
        body = await _texts(request, ("lora_name", "lora_path"))
        try:
            shelf.load(body["lora_name"], body["lora_path"])
        except RequestError as error:
            raise refusal("invalid_value", str(error), error.param) from None
        return _told(shelf)

    async def unload(request: Request) -> Response:
        """POST {"lora_name": "ink"}"""
        body = await _texts(request, ("lora_name",))
        try:
            shelf.unload(body["lora_name"])
        except RequestError as error:
            raise refusal("not_found", str(error), error.param) from None
        return _told(shelf)

    async def choose(request: Request) -> Response:
        """POST {"lora_nickname": "ink", "lora_path": "ink.safetensors", "target": "all", "strength": 0.8}, or lists"""
        body = await _body(request, ("lora_nickname", "lora_path", "target", "strength"))
        names = _many(body, "lora_nickname", str)
        paths, strengths = _many(body, "lora_path", str, len(names)), _many(body, "strength", float, len(names))
        targets = [_component(target) for target in _many(body, "target", str, len(names))]
        try:
            found = zip(names, strengths, targets, strict=True)
            loras = [Lora(name, 1.0 if scale is None else scale, component) for name, scale, component in found]
            await shelf.choose(loras, paths, service.workers.try_on)
        except RequestError as error:
            raise refusal("invalid_value", str(error), _field_of(error)) from None
        return _done(shelf)

    async def merge(request: Request) -> Response:
        """POST {"target": "all", "strength": 0.8}"""
        body = await _body(request, ("target", "strength"))
        _check_target(body)
        [strength] = _many(body, "strength", float, 1)
        try:
            await shelf.wear(strength, service.workers.try_on)
        except RequestError as error:
            raise refusal("invalid_value", str(error), _field_of(error)) from None
        return _done(shelf)

    async def unmerge(request: Request) -> Response:
        """POST {"target": "all"}"""
        _check_target(await _body(request, ("target",)))
        shelf.take_off()
        return _done(shelf)

    paths = {LOAD: load, UNLOAD: unload, SET: choose, MERGE: merge, UNMERGE: unmerge}
    return [Route(path, act, methods=["POST"]) for path, act in paths.items()]


def _listed(shelf: Shelf) -> Any:
    async def listed(request: Request) -> Response:
        return _told(shelf)

    return listed


def _told(shelf: Shelf) -> Response:
    """Names with their files, as they are called in the folder, and what requests wear that do not say."""
    worn = dict[str, list[dict[str, Any]]]()
    for each in shelf.worn:
        about = _file(shelf, each.source) | {"merged": False, "strength": each.scale}
        worn.setdefault(each.component or "all", []).append(about)
    listed = [_file(shelf, name) for name in sorted(shelf.files)]
    return JSONResponse({"loaded_adapters": listed, "active": worn})


def _file(shelf: Shelf, name: str) -> dict[str, Any]:
    return {"nickname": name, "path": shelf.files[name]}


def _done(shelf: Shelf) -> Response:
    """What requests wear now, in words."""
    worn = ", ".join(f"{each.source} at {each.scale:g}" for each in shelf.worn) or "nothing"
    return JSONResponse({"status": "ok", "message": f"requests that do not say what they wear wear {worn}"})


def _field_of(error: RequestError) -> str:
    """The field of these endpoints that an error is about."""
    return error.param if error.param in ("lora_path", "target") else "lora_nickname"


def _component(target: str | None) -> str:
    """What an adapter is for: empty for all that it says itself; ApiError for what is no network that draws."""
    try:
        return component_of(target)
    except RequestError as error:
        raise refusal("invalid_value", str(error), "target") from None


def _check_target(body: Mapping[str, Any]) -> None:
    """ApiError for a part of the model: what is set is worn as a whole, or not."""
    if (target := body.get("target")) not in (None, "all", ["all"]):
        why = "what was set is worn, or not, as a whole; use 'all', or leave it out"
        raise refusal("invalid_value", f"target={target!r:.80} is not taken here: {why}", "target")


def _many(body: Mapping[str, Any], name: str, kind: type, count: int | None = None) -> list[Any]:
    """One value, or a list of as many as there are adapters; of a field that may be left out, None for each."""
    given = body.get(name)
    listed = given if isinstance(given, list) else [given] * (count or 1)
    wanted = (int, float) if kind is float else (kind,)
    if count is None and (not listed or listed == [None]):
        raise refusal("invalid_value", f"{name} must be a name or a list of names", name)
    if count is not None and len(listed) != count:
        raise refusal("invalid_value", f"{name} has {len(listed)} values for {count} adapters; give one for each", name)
    for value in listed:
        if isinstance(value, bool) or not (isinstance(value, wanted) or (value is None and count is not None)):
            what = "a number" if kind is float else "a text"
            raise refusal("invalid_value", f"{name}={value!r:.80} is not {what}", name)
    return list(listed)


async def _body(request: Request, known: tuple[str, ...]) -> dict[str, Any]:
    """A JSON body; ApiError for a field that is unknown."""
    body = await read_json(request)
    for name in body:
        if name not in known:
            raise refusal(
                "unknown_parameter", f"there is no field {name!r:.80} here; known are {', '.join(known)}", name
            )
    return body


async def _texts(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The fields of a JSON body, all of them texts; ApiError for one that is missing or unknown."""
    body = await _body(request, known)
    for name in known:
        if not isinstance(body.get(name), str):
            raise refusal("invalid_value", f"{name} must be a text", name)
    return body
