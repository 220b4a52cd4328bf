"""The outermost layer of the server: every request passes its checks, every response leaves with its headers.

Pure ASGI, no routes. A request gets an id and a tenant (in `request.state`), is refused before its body is read where
its headers tell enough, and has its body capped and timed while it streams. Whatever is raised below becomes JSON.
`protect` makes an app of routes; it is the only place where the framework's own error pages are turned off.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnimuse.server.errors import ApiError, body, on_unexpected_error, refusal, to_api_error, to_json
from omnimuse.server.http import cors
from omnimuse.server.http.budget import Lease
from omnimuse.server.http.checks import Rules, check, check_asking, is_probe, longest_body, too_large
from omnimuse.server.http.handshake import attend
from omnimuse.server.http.watch import ReaderStalled, abort, passed_on
from omnimuse.server.log import Entry

logger = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SLOWEST = 16 * 1024
"""Bytes a second of a body; a client that sends less for long is not served."""
_SMALL = 64 * 1024
"""Bytes of a body that is read away rather than answered by closing the connection."""
_LINGER, _IDLE = 5.0, 1.0
"""Seconds that a refused body is read away in all, and until its next piece: a client that sends until it is done
would otherwise meet a broken connection in place of the answer."""
_PIECE = 256 * 1024
"""Bytes of a response that are passed on at once: each piece must be taken within the stall."""
HTML_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
"""For pages: own files only, nothing inline, in nobody's frame."""


def protect(routes: Sequence[BaseRoute], rules: Rules) -> Starlette:
    """An app of `routes` behind the edge."""
    app = Starlette(
        routes=list(routes), middleware=[Middleware(Edge, rules)], exception_handlers={HTTPException: _on_http_error}
    )
    app.router.redirect_slashes = False
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Lets 404 and 405 of the router reach the edge, in place of the framework's plain text; with the path that was
    meant, where only `/v1` is missing or twice, or a slash is too many.
    """
    told = to_api_error(error)
    if told.status == 404 and (near := _near(request)):
        told = refusal("not_found", f"there is nothing at this path; did you mean {near[:100]}?")
    raise told


def _near(request: Request) -> str:
    plain = re.sub(r"^(/v1)+(?=/|$)", "", request.url.path).rstrip("/")
    for path in (plain, f"/v1{plain}"):
        scope = {**request.scope, "path": path}
        if plain and any(route.matches(scope)[0] is not Match.NONE for route in request.app.router.routes):
            return path
    return ""


class Edge:
    """One ASGI layer around the whole app."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises nothing but cancellation."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"], state["tenant"] = request_id, ""
        if scope["type"] == "websocket":
            await attend(self._app, self._rules, scope, receive, send)
            return
        incoming = _Incoming(receive, headers, self._rules, longest_body(self._rules, scope, headers))
        outgoing = _Outgoing(send, scope, incoming, self._rules.stall, cors.allowance(self._rules.origins, headers))

        async def work() -> None:
            if cors.is_question(scope, headers) and cors.may_call(self._rules.origins, headers):
                check_asking(self._rules, scope, headers)
                await Response(status_code=204, headers=cors.answer(headers))(scope, incoming.receive, outgoing.send)
                return
            state["tenant"] = check(self._rules, scope, headers)
            with closing(self._rules.bodies.lease(state["tenant"])) as lease:
                state["lease"] = incoming.lease = lease
                lease.grow(incoming.declared)
                await self._app(scope, incoming.receive, outgoing.send)

        began = time.monotonic()
        trouble = await on_unexpected_error(work, outgoing.fail, f"request {request_id}")
        about = {"method": scope["method"], "path": scope["path"][:200], "status": outgoing.status, **trouble}
        entry = Entry("request", request_id, "answered", state["tenant"], time.monotonic() - began, about)
        entry.write(logger, logging.DEBUG if is_probe(scope) else logging.INFO)


class _Incoming:
    """The body on its way in: no longer than allowed, no slower than allowed."""

    def __init__(self, receive: Receive, headers: Headers, rules: Rules, most: int) -> None:
        self._receive, self._rules, self._most = receive, rules, most
        declared = headers.get("content-length", "0")
        self.declared = int(declared) if declared.isdecimal() else 0
        self.lease: Lease | None = None
        self._chunked = "transfer-encoding" in headers
        self._expects = headers.get("expect", "").lower() == "100-continue"
        self._length, self._waited, self._whole, self._slow = 0, 0.0, False, False

    @property
    def must_close(self) -> bool:
        """Whether more of the body may come than is worth reading away, or none of it, which only the client knows."""
        left = self.declared - self._length
        return not self._whole and (self._chunked or left > _SMALL or (self._expects and left > 0))

    async def read_away(self) -> None:
        """Take what is still on its way and drop it, for a while; not where it is slow, too long or not yet sent."""
        left = self._most - self._length
        if not self.must_close or self._expects or self._slow or self.declared > self._most:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while left > 0:
                    async with asyncio.timeout(_IDLE):
                        message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def receive(self) -> Message:
        """The next message; ApiError 413 or 408 when the body is too long or too slow."""
        self._expects = False  # the server asks for the body now
        if self._whole:
            return await self._receive()
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._rules.patience + self._length / _SLOWEST - self._waited):
                message = await self._receive()
        except TimeoutError:
            self._slow = True
            raise refusal("request_timeout", "the body came too slowly; send it again over a better line") from None
        self._waited += time.monotonic() - began
        self._length += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._length > self._most:
            self._whole = False
            raise too_large(self._most)
        if self.lease is not None:
            self.lease.grow(self._length)
        return message


class _Outgoing:
    """The response on its way out: with the headers every response has, and not to a reader who does not read."""

    def __init__(
        self, send: Send, scope: Scope, incoming: _Incoming, stall: float, allowance: Mapping[str, str]
    ) -> None:
        self._send, self._scope, self._incoming, self._stall = send, scope, incoming, stall
        self._allowance = allowance
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass `message` on; ReaderStalled when the client does not take it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._complete(MutableHeaders(raw=message.setdefault("headers", [])))
        for piece in _pieces(message):
            await passed_on(self._send, piece, self._stall, self._scope)

    def _complete(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self._scope["state"]["request_id"]
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "no-referrer"
        headers.update(self._allowance)
        if headers.get("content-type", "").startswith("text/html"):
            for name, value in HTML_HEADERS.items():
                headers.setdefault(name, value)
        if self._scope["path"].startswith("/v1/"):
            headers.setdefault("cache-control", "no-store")
        if self._incoming.must_close:
            headers["connection"] = "close"

    async def fail(self, error: ApiError) -> None:
        """Answer with `error`; a response that has begun can only be broken off."""
        if self.status:
            await abort(self._scope)
            return
        content = to_json(body(error))
        headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        try:
            await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
            await self.send({"type": "http.response.body", "body": content, "more_body": True})
            await self._incoming.read_away()
            await self.send({"type": "http.response.body", "body": b""})
        except ReaderStalled:
            return


def _pieces(message: Message) -> Iterator[Message]:
    """`message`, or the messages that a long body is sent in."""
    content = message.get("body", b"")
    last = max(0, len(content) - 1) // _PIECE * _PIECE
    for start in range(0, last, _PIECE):
        yield {**message, "body": bytes(memoryview(content)[start : start + _PIECE]), "more_body": True}
    yield {**message, "body": content[last:]} if last else message
