"""HTTP over a unix socket, for tests."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from tests.server.whole_server import Answer


class UnixConnection(http.client.HTTPConnection):
    """A connection through the socket at `path`."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(socket_path: Path, path: str, body: Any = None) -> tuple[Answer, bytes]:
    """GET, or with a `body` POST: the answer, and its bytes."""
    connection = UnixConnection(socket_path)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        found = connection.getresponse()
        content = found.read()
        is_json = found.headers.get_content_type() == "application/json"
        return Answer(found.status, dict(found.headers), json.loads(content) if is_json else None), content
    finally:
        connection.close()
