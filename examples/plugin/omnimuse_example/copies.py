"""A connector between pools on one machine: a unix socket over which everything is signed and copied.

For systems that have no memory without a name, which `shared_memory` needs. Both ends prove that they know the key.
"""

from __future__ import annotations

import socket
from pathlib import Path

from omnimuse.deploy.connectors import GREETING, Connector, Door, Listening, Met, joined


class Copies:
    """`listen` is called at the front, with a folder of its own, and `connect` in every pool."""

    def listen(self, folder: Path, key: bytes, met: Met) -> Listening:
        address = str(folder / "copies")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen()
        return Door(listener, address, key, met, sealed=True)

    def connect(self, address: str, key: bytes, name: str) -> Connector:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(GREETING)
        stream.connect(address)
        return joined(stream, key, name, sealed=True)
