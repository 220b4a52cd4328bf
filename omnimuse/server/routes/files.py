"""GET /v1/files/{name}/content: finished files by signed link, for those who asked for a `url` instead of the bytes.

A link says until when it is good, and a signature with the server's own key says that we made it; nobody needs an API
key to follow it. Names are the server's; a name or signature of another shape is refused before any disk is touched.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.server.errors import refusal
from omnimuse.server.http.download import download
from omnimuse.server.openapi import Operation
from omnimuse.server.service import Service

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
    """Makes and checks links; `key` is the server's own (`own_key.py`), so that links outlive a restart."""

    def __init__(self, key: bytes) -> None:
        self._key = key

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
    links = Links(service.files.key)

    async def content(request: Request) -> Response:
        name, query = request.path_params["name"], request.query_params
        links.check(name, query.get("expires", ""), query.get("signature", ""), time.time())
        saved = f"omnimuse.{name.rpartition('.')[2]}"
        try:
            return await download(request, service.files.path(name), saved, name, inline=True)
        except FileNotFoundError:
            raise refusal("file_not_found", "this file is no longer kept; ask for the picture again") from None

    return [Route("/v1/files/{name}/content", content)]
