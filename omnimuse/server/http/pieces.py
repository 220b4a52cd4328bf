"""How an answer that comes in pieces is sent: its head, each piece, and its end."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Send


async def begin(response: Response, send: Send) -> None:
    """Send its status and its headers."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})


async def write(send: Send, data: bytes) -> None:
    """Send a piece, behind which more comes."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def end(send: Send) -> None:
    """Say that nothing more comes."""
    await send({"type": "http.response.body", "body": b""})
