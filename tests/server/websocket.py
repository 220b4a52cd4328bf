"""A WebSocket to a running server, for tests: the client of the package `websockets`, events in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

PATIENCE = 60.0


class Events:
    """An open WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, type_: str, **fields: Any) -> None:
        """Send an event."""
        self.socket.send(json.dumps({"type": type_, **fields}))

    def hear(self) -> dict[str, Any] | bytes:
        """The next event, or message of bytes."""
        message = self.socket.recv(PATIENCE)
        return message if isinstance(message, bytes) else json.loads(message)

    def until(self, last: str) -> list[dict[str, Any] | bytes]:
        """Everything up to an event of type `last`."""
        found = [self.hear()]
        while isinstance(found[-1], bytes) or found[-1]["type"] != last:
            found.append(self.hear())
        return found


@contextmanager
def opened(url: str, path: str, headers: Mapping[str, str] | None = None, **options: Any) -> Iterator[Events]:
    """A WebSocket at `path` of the server at `url`."""
    address = url.replace("http://", "ws://") + path
    options = {"open_timeout": PATIENCE, "close_timeout": 5, "max_size": None, "compression": None, **options}
    with connect(address, additional_headers=headers, proxy=None, **options) as socket:
        yield Events(socket)
