"""The edge of WebSockets: one passes the same checks as a request before it is opened, and has an id and a tenant.

What refuses it is answered as a request would be, in HTTP; what fails once it is open closes it. `scope["state"]` has
`ask`, which says whether it may go on with another piece of work (the key may have gone, the server may be ending, a
minute may have had its requests), and `idle`, the seconds of silence after which it is closed.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing, suppress
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnimuse.server.errors import ApiError, body, on_unexpected_error, to_json
from omnimuse.server.http.checks import Rules, check_live
from omnimuse.server.http.watch import ReaderStalled, passed_on
from omnimuse.server.log import Entry

logger = logging.getLogger(__name__)

REFUSED, FAILED = 1008, 1011
"""Codes that close a WebSocket: one that may not be here, and one on which something failed."""
_ANSWERS = "websocket.http.response"
"""The extension of ASGI by which a WebSocket that is not opened gets an answer."""


async def attend(app: ASGIApp, rules: Rules, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one WebSocket until it is closed. Raises nothing but cancellation."""
    headers, state = Headers(scope=scope), scope["state"]
    outgoing = _Outgoing(send, scope, rules.stall)

    async def work() -> None:
        state["ask"], state["idle"] = partial(check_live, rules, scope, headers), rules.idle
        state["tenant"] = state["ask"]()
        with closing(rules.bodies.lease(state["tenant"])) as lease:
            state["lease"] = lease
            await app(scope, receive, outgoing.send)

    began = time.monotonic()
    trouble = await on_unexpected_error(work, outgoing.fail, f"WebSocket {state['request_id']}")
    about = {"method": "GET", "path": scope["path"][:200], "status": outgoing.status, **trouble}
    Entry("request", state["request_id"], "answered", state["tenant"], time.monotonic() - began, about).write(logger)


class _Outgoing:
    """What is sent to a client: with our headers, and not to one who does not read."""

    def __init__(self, send: Send, scope: Scope, stall: float) -> None:
        self._send, self._scope, self._stall = send, scope, stall
        self.status, self._closed = 0, False

    async def send(self, message: Message) -> None:
        """Pass `message` on; ReaderStalled when the client does not take it."""
        match message["type"]:
            case "websocket.accept":
                self.status = 101
                MutableHeaders(raw=message.setdefault("headers", []))["x-request-id"] = self._scope["state"][
                    "request_id"
                ]
            case "websocket.close":
                self._closed = True
        await passed_on(self._send, message, self._stall, self._scope)

    async def fail(self, error: ApiError) -> None:
        """Answer with `error`, or close; one whose client has gone is closed already."""
        if self._closed:
            return
        if not self.status and _ANSWERS in self._scope.get("extensions", {}):
            await self._answer(error)
            return
        with suppress(OSError, ReaderStalled):
            code = FAILED if self.status else REFUSED
            await self.send({"type": "websocket.close", "code": code, "reason": error.code})

    async def _answer(self, error: ApiError) -> None:
        self.status = error.status
        headers = {
            "content-type": "application/json",
            "x-request-id": self._scope["state"]["request_id"],
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            **error.headers,
        }
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        with suppress(OSError, ReaderStalled):
            await self.send({"type": f"{_ANSWERS}.start", "status": error.status, "headers": raw})
            await self.send({"type": f"{_ANSWERS}.body", "body": to_json(body(error))})
