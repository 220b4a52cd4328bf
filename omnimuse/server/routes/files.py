"""GET /v1/files/{name}/content: finished files by signed link, for those who asked for a `url` instead of the bytes.

A link says until when it is good, and a signature with the server's own key says that we made it; nobody needs an API
key to follow it. Names are the server's; a name or signature of another shape is refused before any disk is touched.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.core.errors import ConfigError
from omnimuse.server.errors import refusal
from omnimuse.server.http.download import download
from omnimuse.server.jobs.files import sync_folder
from omnimuse.server.openapi import Operation
from omnimuse.server.service import Service

_KEY_BYTES = 32

_QUERY = {"expires": {"type": "integer"}, "signature": {"type": "string"}}
OPERATIONS = (
    Operation(
        "GET",
        "/v1/files/{name}/content",
        "A finished file, by the signed link that an answer gave; ranges are honoured.",
        responses={200: "image/png"},
        query=_QUERY,
        open=True,
    ),
)


class Links:
    """Makes and checks links; `key` stays the same over restarts, so that links outlive them."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @staticmethod
    def of(data: Path) -> Links:
        """With the key in the folder `data`, made at first use; readable by this user only."""
        path = data / "links.key"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            key = path.read_bytes()
        else:
            key = secrets.token_bytes(_KEY_BYTES)
            with os.fdopen(handle, "wb") as file:
                file.write(key)
                file.flush()
                os.fsync(file.fileno())  # links that were given out must not outlive their key
            sync_folder(data)
        if len(key) != _KEY_BYTES:
            raise ConfigError(f"{path} is damaged; remove it and start again (links given out before become invalid)")
        return Links(key)

    def url(self, base: str, name: str, expires: float) -> str:
        """A link to the kept file `name`, good until `expires` (seconds since 1970). `base` ends with a slash."""
        until = int(expires)
        return f"{base}v1/files/{name}/content?expires={until}&signature={self._sign(name, until)}"

    def check(self, name: str, expires: str, signature: str, now: float) -> None:
        """ApiError 403 unless we made this link and it is still good."""
        good = expires.isascii() and expires.isdigit() and len(expires) <= 12
        expected = self._sign(name, int(expires) if good else 0)
        if not hmac.compare_digest(expected.encode(), signature.encode()) or not good:
            raise refusal("invalid_signature", "this link was not made by this server; ask for the picture again")
        if int(expires) < now:
            raise refusal("invalid_signature", "this link has expired; ask for the picture again")

    def _sign(self, name: str, expires: int) -> str:
        return hmac.new(self._key, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()


def routes(service: Service) -> list[Route]:
    """The endpoint of files."""
    links = Links.of(service.options.data)

    async def content(request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        links.check(name, query.get("expires", ""), query.get("signature", ""), time.time())
        saved = f"omnimuse.{name.rpartition('.')[2]}"
        try:
            return await download(request, service.files.path(name), saved, name, inline=True)
        except FileNotFoundError:
            raise refusal("file_not_found", "this file is no longer kept; ask for the picture again") from None

    return [Route("/v1/files/{name}/content", content)]
