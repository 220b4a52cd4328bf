"""Sockets: opening them before anything is loaded, and serving an app on one.

`server/serve.py` opens the public interface here, and the two planes that have addresses of their own: the measurements
and the operator's endpoints.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute, WebSocketRoute
from uvicorn.server import ServerState

from omnimuse.core.errors import ConfigError
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection, Crowd
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.strict_json import MAX_JSON
from omnimuse.server.options import Address, is_loopback, told

LAST_WORDS = 5.0
"""Seconds that answers under way get once the drain is over."""
_BACKLOG = 2048
_SOCKET_MODE = 0o660


def make_room_for(connections: int) -> None:
    """Let this process open what so many connections need; ConfigError where the system does not let it.

    Each has a socket and may have a file open; the rest is the server's own.
    """
    needed = 2 * connections + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{connections} connections need {needed} open files, and this process may have {hard}; raise the limit "
            "(ulimit -n, LimitNOFILE), or choose fewer with --max-connections"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def listen(address: Address) -> Iterator[socket.socket]:
    """A listening socket; ConfigError when the address is taken or not ours. A unix socket is removed at the end."""
    kind = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as listener:
        try:
            if isinstance(address, Path):
                _bind(listener, address)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            hint = "choose another path" if isinstance(address, Path) else "choose another port (0 takes a free one)"
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                hint = "name an address of this machine with --host"
            raise ConfigError(f"cannot listen on {told(address)}: {error.strerror or error}; {hint}") from None
        try:
            yield listener
        finally:
            if isinstance(address, Path):
                address.unlink(missing_ok=True)


def address_of(listener: socket.socket) -> Address:
    """Where `listener` listens, with the port that it was given."""
    found = listener.getsockname()
    return Path(found) if isinstance(found, str) else (found[0], found[1])


def _bind(listener: socket.socket, path: Path) -> None:
    """Make the socket at `path`, for its user and group; one that a dead server left there is replaced."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            with suppress(ConnectionRefusedError):
                other.connect(str(path))
                raise OSError("another server listens there")
        path.unlink()
    before = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)


def uvicorn_config(app: Starlette, crowd: Crowd) -> uvicorn.Config:
    """How every app is served here: by our connections, without uvicorn's own words."""
    live = [route.path for route in app.routes if isinstance(route, WebSocketRoute)]
    return uvicorn.Config(
        app,
        http=partial(Connection, crowd=crowd, live=live),  # type: ignore[arg-type]
        ws="none",
        ws_max_size=MAX_JSON,
        ws_ping_timeout=None,  # the kernel ends who is gone, and the edge who takes nothing
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(LAST_WORDS),
    )


async def serve_beside(routes: Sequence[BaseRoute], listener: socket.socket) -> asyncio.Server:
    """Serve `routes` alone, at an address of their own and without a key, until the server is closed.

    Where only this machine can connect, pages of other sites cannot reach them through a browser.
    """
    local = listener.family == socket.AF_UNIX or is_loopback(listener.getsockname()[0])
    config = uvicorn_config(protect(routes, Rules(Keys.load(None), local_only=local)), Crowd(64, 64))
    config.load()
    state = ServerState()
    return await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        sock=listener,
    )


async def end(server: asyncio.Server) -> None:
    """Close what `serve_beside` opened."""
    server.close()
