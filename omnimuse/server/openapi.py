"""The description of our HTTP interface, OpenAPI 3.1, made from the pydantic models of `server/protocol`.

Served at /openapi.json: people read it, generators make clients of it, and a fuzzer takes its requests from it. What is
listed here is a list of `Operation`; this module knows no endpoint by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from omnimuse.server.errors import CODES

_REF = "#/components/schemas/{model}"
Answer = type[BaseModel] | str | None
"""A JSON model, a content type for anything else, or None for an answer without a body."""


@dataclass(frozen=True)
class Operation:
    """One method of one path. `path` has its parameters in braces; `form`: the body comes as a form, too.

    `responses` are those of success, by status; every operation can answer with an error as well. `query` gives the
    JSON schema of each query parameter, all of them optional. `open`: no key is needed.
    """

    method: str
    path: str
    summary: str
    body: type[BaseModel] | None = None
    form: bool = False
    responses: Mapping[int, Answer] = field(default_factory=dict)
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    open: bool = False


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The whole description, as plain values for JSON. `version` is the server's."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "omnimuse",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**_schemas(_models(operations)), "Error": _error_schema()},
            "responses": {"Error": {"description": "An error.", "content": _content("application/json", "Error")}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _describe(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": operation.summary, "operationId": _identifier(operation)}
    found["responses"] = {str(status): _response(answer) for status, answer in operation.responses.items()}
    found["responses"]["default"] = {"$ref": "#/components/responses/Error"}
    if parameters := _parameters(operation):
        found["parameters"] = parameters
    if operation.body is not None:
        kinds = [
            "application/json",
            *(["multipart/form-data", "application/x-www-form-urlencoded"] if operation.form else []),
        ]
        content = {kind: _content(kind, operation.body.__name__)[kind] for kind in kinds}
        found["requestBody"] = {"required": True, "content": content}
    if operation.open:
        found["security"] = []
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    return in_path + [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]


def _response(answer: Answer) -> dict[str, Any]:
    if answer is None:
        return {"description": "Done."}
    if isinstance(answer, str):
        return {"description": "Done.", "content": {answer: {}}}
    return {"description": "Done.", "content": _content("application/json", answer.__name__)}


def _content(kind: str, model: str) -> dict[str, Any]:
    return {kind: {"schema": {"$ref": _REF.format(model=model)}}}


def _identifier(operation: Operation) -> str:
    """`post_v1_images_generations`: stable, for client generators."""
    return re.sub(r"\W+", "_", f"{operation.method.lower()}_{operation.path}").strip("_")


def _models(operations: Iterable[Operation]) -> list[type[BaseModel]]:
    """Every model that is named, once. Two models of one name would hide each other."""
    found: dict[str, type[BaseModel]] = {}
    for operation in operations:
        for model in (operation.body, *operation.responses.values()):
            if isinstance(model, type) and found.setdefault(model.__name__, model) is not model:
                raise ValueError(f"two protocol models are called {model.__name__}; rename one")
    return list(found.values())


def _schemas(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    return schema.get("$defs", {})


def _error_schema() -> dict[str, Any]:
    """The shape of every error, with the words it can use."""
    fields = {
        "message": {"type": "string"},
        "type": {"type": "string", "enum": sorted({code.type for code in CODES.values()})},
        "param": {"type": ["string", "null"]},
        "code": {"type": "string", "enum": sorted(CODES)},
    }
    inner = {"type": "object", "properties": fields, "required": sorted(fields)}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}
