"""What browsers are told so that pages of other sites may call this server: those of origins that the operator named.

Called by the edge. Without origins nothing of this is ever said, and browsers keep such pages out. No cookie is ever
read here, so there are no credentials to allow: a key is sent by the page itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import Scope

ANY = "*"
REMEMBERED = "600"
"""Seconds for which a browser remembers the answer to its question."""
_METHODS = "GET, POST, DELETE"
_USUAL = "authorization, content-type, idempotency-key, x-request-id"
_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:,\s*[A-Za-z0-9-]{1,64}){0,63}", re.ASCII)
_SHOWN = "x-request-id, retry-after, openai-poll-after-ms, content-disposition"
"""Headers of answers that a page may read beside the usual ones."""


def may_call(origins: Collection[str], headers: Headers) -> bool:
    """Whether the page behind a request is of a site that was named."""
    origin = headers.get("origin")
    return origin is not None and (ANY in origins or origin.lower() in origins)


def is_question(scope: Scope, headers: Headers) -> bool:
    """Whether this is a browser that asks what a page may do, before it lets it; such a question has no key."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def answer(headers: Headers) -> dict[str, str]:
    """The headers that let the page behind a question ask what it wants to; everything else is checked then."""
    wanted = headers.get("access-control-request-headers", "")
    return {
        "access-control-allow-methods": _METHODS,
        "access-control-allow-headers": wanted if _NAMES.fullmatch(wanted) else _USUAL,
        "access-control-max-age": REMEMBERED,
    }


def allowance(origins: Collection[str], headers: Headers) -> dict[str, str]:
    """What every answer says where there are origins: whether the page that asked may read it."""
    if not origins:
        return {}
    if not may_call(origins, headers):
        return {"vary": "origin"}
    shown = {"access-control-allow-origin": headers["origin"], "access-control-expose-headers": _SHOWN}
    return {"vary": "origin", **shown}
