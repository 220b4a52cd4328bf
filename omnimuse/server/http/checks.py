"""What a request must show before its body is read: sane headers, a known host, no foreign page behind it, a key.

Called by the edge, once per request. Plain functions of the request's head; each raises the `ApiError` that refuses it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from omnimuse.core.amounts import told_bytes
from omnimuse.server.errors import ApiError, refusal
from omnimuse.server.http import cors
from omnimuse.server.http.budget import Bodies, Rates
from omnimuse.server.http.keys import Keys

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024
MAX_TARGET = 8 * 1024
"""Characters of the path and query."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""How the protocol of a WebSocket begins that has a key in it."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health", "/ping", "/version", "/favicon.ico"})
_PROBES = frozenset({"/livez", "/readyz", "/health", "/ping", "/load", "/metrics"})
_OPEN_SHAPES = re.compile(r"/playground/[\w-]+(?:\.[\w-]+)*|/v2/health/(?:live|ready)|/v1/files/[\w.-]+/content")
"""The page's own files, health by its other names, and files by signed link: their route checks the signature."""


@dataclass(frozen=True)
class Rules:
    """What the edge insists on. Times in seconds, sizes in bytes.

    `local_only`: only this machine can connect. `patience` is what a client may take to send a body, beyond what its
    length needs at the slowest speed; a response of which nothing is taken for `stall` is given up. A POST to a path
    of `drawing` is work: `check_room` raises if the tenant can get no place for it. Where there are `hosts`, no other
    Host is answered to, except those of this machine; pages of `origins` may call from a browser. JSON has at most
    `max_json`, except on paths of `pictured`. A WebSocket on which a client says nothing for `idle` is closed.
    """

    keys: Keys
    max_body: int = 64 * 2**20
    local_only: bool = True
    draining: Callable[[], bool] = lambda: False
    patience: float = 20.0
    stall: float = 30.0
    drawing: frozenset[str] = frozenset()
    check_room: Callable[[str], None] = lambda tenant: None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    pictured: frozenset[str] = frozenset()
    max_json: int = 64 * 2**20
    bodies: Bodies = field(default_factory=lambda: Bodies(2**40, 2**40))
    rates: Rates = field(default_factory=lambda: Rates(0))
    idle: float = 300.0


def check(rules: Rules, scope: Scope, headers: Headers) -> str:
    """The tenant of a request that may go on; ApiError for any other."""
    check_asking(rules, scope, headers)
    if scope["method"] not in SAFE_METHODS and not cors.may_call(rules.origins, headers):
        _check_origin(headers)
    tenant = ""
    if not _is_open(scope):
        tenant = rules.keys.tenant(headers.get("authorization"))
        rules.rates.ask(tenant)
    if rules.draining() and scope["method"] not in SAFE_METHODS | {"DELETE"} and not scope["path"].endswith("/cancel"):
        raise refusal("server_draining", "the server is shutting down; try again in a moment", retry_after=10)
    if int(headers.get("content-length", "0")) > (most := longest_body(rules, scope, headers)):
        raise too_large(most)
    if scope["method"] == "POST" and scope["path"] in rules.drawing and "idempotency-key" not in headers:
        rules.check_room(tenant)  # what has a key may have been drawn already
    return tenant


def check_live(rules: Rules, scope: Scope, headers: Headers) -> str:
    """The tenant of a WebSocket that may be opened or, asked again, go on with another piece of work; ApiError else.

    A browser lets pages of every site open one, so where a page comes from is always looked at.
    """
    check_asking(rules, scope, headers)
    if not cors.may_call(rules.origins, headers):
        _check_origin(headers)
    tenant = rules.keys.tenant(headers.get("authorization") or _in_protocols(headers))
    rules.rates.ask(tenant)
    if rules.draining():
        raise refusal("server_draining", "the server is shutting down; try again in a moment", retry_after=10)
    return tenant


def _in_protocols(headers: Headers) -> str | None:
    """The key among the protocols that a page offers, which can send no other header; OpenAI's clients do so, too."""
    for offered in headers.get("sec-websocket-protocol", "").split(","):
        if (name := offered.strip()).startswith(KEY_PROTOCOL):
            return f"Bearer {name.removeprefix(KEY_PROTOCOL)}"
    return None


def check_asking(rules: Rules, scope: Scope, headers: Headers) -> None:
    """ApiError for a head that cannot be read or a Host that is not ours: all that a browser's question needs."""
    _check_head(scope, headers)
    if rules.hosts or (rules.local_only and not rules.keys.required):
        _check_host(headers, rules.hosts)


def longest_body(rules: Rules, scope: Scope, headers: Headers) -> int:
    """The bytes that the body of a request may have."""
    kind = headers.get("content-type", "").lower()
    pictured = scope["path"] in rules.pictured
    if (kind.startswith("application/json") and not pictured) or kind.startswith("application/x-www-form-urlencoded"):
        return min(rules.max_json, rules.max_body)
    return rules.max_body


def too_large(most: int) -> ApiError:
    """The refusal of a body of more than `most` bytes."""
    return refusal("request_too_large", f"the body is longer than {told_bytes(most)}, the most this server reads")


def _check_head(scope: Scope, headers: Headers) -> None:
    target = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    if target > MAX_TARGET:
        raise refusal("uri_too_long", f"the path and query have {target} characters; at most {MAX_TARGET} are read")
    size = sum(len(name) + len(value) for name, value in headers.raw)
    if len(headers.raw) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        limits = f"at most {MAX_HEADERS} headers of {told_bytes(MAX_HEADER_BYTES)} in all are read"
        raise refusal(
            "headers_too_large", f"the request has {len(headers.raw)} headers of {told_bytes(size)}; {limits}"
        )
    if not headers.get("content-length", "0").isdecimal():
        raise refusal("invalid_value", "Content-Length is not a number of bytes", "content-length")


def _check_host(headers: Headers, hosts: Collection[str]) -> None:
    """Against DNS rebinding: a page whose own name leads here is same-origin to a browser, and names itself as Host.

    Where a key protects the server, such a page has no key; its operator need not name `hosts`.
    """
    name = _split("//" + headers.get("host", "")).hostname or ""
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return
    try:
        if ipaddress.ip_address(name).is_loopback:
            return
    except ValueError:
        pass
    raise refusal(
        "host_not_allowed",
        f"Host {name[:100]!r} is none of this server's names; use localhost, or let its operator name it with "
        "--allowed-host, or give the server an API key",
    )


def _check_origin(headers: Headers) -> None:
    """Against pages of other sites: browsers say truthfully where a request comes from, other clients say nothing."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        allowed = origin is None or _same_host(origin, headers.get("host", ""))
    if not allowed:
        raise refusal(
            "origin_not_allowed",
            f"a page of another site ({(origin or site or '')[:100]!r}) may not use this server from a browser; "
            "open the server's own page, call it from a program, or let its operator name the site with --cors-origin",
        )


def _same_host(origin: str, host: str) -> bool:
    """Whether `origin` ("https://name:port") names `host` ("name:port"); a missing port is that of the scheme.

    A proxy may have ended TLS, so the scheme itself is not compared.
    """
    page = _split(origin)
    usual = {"http": 80, "https": 443}.get(page.scheme)
    here = _split("//" + host)
    if usual is None or not page.hostname:
        return False
    return (page.hostname, page.port or usual) == (here.hostname, here.port or usual)


def _split(address: str) -> SplitResult:
    """The parts of an address; those of an empty one if it makes no sense."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 (it is parsed, and refused, when it is read)
    except ValueError:
        return urlsplit("")
    return parts


def is_probe(scope: Scope) -> bool:
    """Whether a request only asks how the server is: monitors do so all the time."""
    path: str = scope["path"]
    return scope["method"] in SAFE_METHODS and (path in _PROBES or path.startswith("/v2/health/"))


def _is_open(scope: Scope) -> bool:
    """Whether a request may come without a key."""
    path: str = scope["path"]
    return scope["method"] in SAFE_METHODS and (path in _OPEN_PATHS or _OPEN_SHAPES.fullmatch(path) is not None)
