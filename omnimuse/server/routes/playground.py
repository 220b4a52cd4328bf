"""The page at `/` and its files, read once at start from the folder `playground`.

Each file is a route of its own, so nothing of a request ever becomes a path, and an unknown address is the router's
404. The page needs no key: it asks for one when the API does. It may load and call nothing but this server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.server.service import Service

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The files that are served, by how their names end."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob:",  # pictures come as JSON and are shown from memory
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text ever becomes markup
    )
)
"""The Content-Security-Policy: no inline script or style, nothing from elsewhere, no frame around the page."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked about each time, answered by 304: an upgrade is seen at once
}


def routes(service: Service) -> list[Route]:
    """`/`, and `/playground/NAME` for every file of the page."""
    answers = {name: _answer(content, kind) for name, (content, kind) in read_files().items()}
    assets = [Route(f"/playground/{name}", answer) for name, answer in answers.items() if name != "index.html"]
    return [Route("/", answers["index.html"]), *assets]


def read_files() -> dict[str, tuple[bytes, str]]:
    """Name -> content and media type of what the page consists of; other files of the folder are not served."""
    folder = files("omnimuse") / "playground"
    found = {}
    for file in folder.iterdir():
        kind = next((kind for suffix, kind in KINDS.items() if file.name.endswith(suffix)), None)
        if kind is not None:
            found[file.name] = (file.read_bytes(), kind)
    return found


def _answer(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return answer
