"""What a client is told when something goes wrong: one JSON shape, one table of codes, one rule for retries.

Routes raise `ApiError` (most easily through `refusal`) or an error of `core.errors`; the edge turns either into a
response with `body` and `ApiError.headers`. Text for clients passes `scrub`: no path, address or traceback leaves here.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from omnimuse.core import errors as core

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_MESSAGE = 2000
"""Characters of a message that a client is shown."""


@dataclass(frozen=True)
class Code:
    """One word of the vocabulary: its HTTP status and type, and when it is said.

    `retry` is "never" (the client is told not to repeat the request), "later" (it is told how long to wait) or "known":
    later if somebody knows how long, else never.
    """

    status: int
    type: str
    meaning: str
    retry: str = "never"


_BAD, _GONE = "invalid_request_error", "not_found_error"
CODES: dict[str, Code] = {
    "invalid_request": Code(400, _BAD, "what came is not HTTP"),
    "invalid_json": Code(400, _BAD, "the body is no strict JSON object"),
    "invalid_form": Code(400, _BAD, "the body is no readable multipart form, or has too many parts"),
    "invalid_value": Code(400, _BAD, "a field has a value that is not allowed"),
    "missing_parameter": Code(400, _BAD, "a required field is absent"),
    "unknown_parameter": Code(400, _BAD, "no such field exists"),
    "unsupported_parameter": Code(400, _BAD, "the field is known, and this model or server does not honour it"),
    "conflicting_parameters": Code(400, _BAD, "two fields contradict each other"),
    "unsupported_by_server": Code(400, _BAD, "the work needs what this server was started without"),
    "unsupported_task": Code(400, _BAD, "this model does not do this kind of work"),
    "invalid_image": Code(400, _BAD, "a picture that was sent is none, or is damaged"),
    "invalid_audio": Code(400, _BAD, "a sound that was sent is none, or is damaged"),
    "invalid_video": Code(400, _BAD, "a video that was sent is none, or is damaged"),
    "image_too_large": Code(400, _BAD, "a picture that was sent has too many pixels or bytes to be read"),
    "url_not_allowed": Code(400, _BAD, "the server fetches nothing from that address"),
    "invalid_api_key": Code(401, "authentication_error", "no API key, or a wrong one"),
    "host_not_allowed": Code(403, "permission_error", "the Host header names no address of this server"),
    "origin_not_allowed": Code(403, "permission_error", "a page of another site may not change anything here"),
    "invalid_signature": Code(403, "permission_error", "a link is forged or has expired"),
    "not_found": Code(404, _GONE, "no such path"),
    "model_not_found": Code(404, _GONE, "this server does not serve that model"),
    "video_not_found": Code(404, _GONE, "no such video"),
    "image_not_found": Code(404, _GONE, "no such picture job"),
    "audio_not_found": Code(404, _GONE, "no such sound"),
    "voice_not_found": Code(404, _GONE, "no such voice is kept"),
    "file_not_found": Code(404, _GONE, "no such file"),
    "method_not_allowed": Code(405, _BAD, "the path knows no such method"),
    "request_timeout": Code(408, "timeout_error", "the body came too slowly"),
    "cancelled": Code(409, _BAD, "the work was cancelled"),
    "video_not_ready": Code(409, _BAD, "the video is not finished"),
    "audio_not_ready": Code(409, _BAD, "the sound is not finished"),
    "idempotency_conflict": Code(409, _BAD, "the Idempotency-Key was used for another request"),
    "request_too_large": Code(413, _BAD, "the body is longer than allowed"),
    "uri_too_long": Code(414, _BAD, "the path and query are longer than allowed"),
    "unsupported_media_type": Code(415, _BAD, "the body has a type that is not read here"),
    "invalid_range": Code(416, _BAD, "the asked range is outside the file, or is several ranges"),
    "headers_too_large": Code(431, _BAD, "too many headers, or too long ones"),
    "quota_exceeded": Code(429, "rate_limit_error", "as much is kept for the key as may be"),
    "rate_limited": Code(429, "rate_limit_error", "the key has sent too many requests in a minute", "later"),
    "queue_full": Code(429, "rate_limit_error", "too much work waits already", "later"),
    "adapters_full": Code(429, "rate_limit_error", "requests in progress wear as many adapters as have room", "later"),
    "keys_unreadable": Code(503, "service_unavailable", "the server cannot read its API keys", "later"),
    "too_many_connections": Code(503, "service_unavailable", "too many connections are open", "later"),
    "internal_error": Code(500, "server_error", "a fault of the server"),
    "model_error": Code(500, "server_error", "the model's files are missing or damaged"),
    "numerical_error": Code(500, "server_error", "the model's output is not a number (NaN or infinite)"),
    "worker_crash": Code(500, "server_error", "the request ended its worker twice and is not tried again"),
    "server_draining": Code(503, "service_unavailable", "the server is shutting down", "later"),
    "deadline_unreachable": Code(503, "service_unavailable", "the answer would come too late", "known"),
    "worker_lost": Code(503, "service_unavailable", "the worker died, and the work could not be repeated"),
    "engine_dead": Code(503, "service_unavailable", "no worker can be started"),
    "insufficient_memory": Code(503, "service_unavailable", "the work did not fit in memory"),
    "storage_full": Code(503, "service_unavailable", "there is no room to store the result", "known"),
    "deadline_exceeded": Code(504, "timeout_error", "the deadline passed before the work was done"),
}
"""Every code a client can meet. Stable: clients compare these words."""
NOTED = frozenset({"internal_error", "model_error", "unsupported_by_server"})
"""Those of what no client caused, which the log has as a whole."""


class ApiError(Exception):
    """An answer that is an error. `message` says what is wrong, the value, what is allowed and what to do."""

    def __init__(
        self,
        status: int,
        type: str,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code = status, type, code
        self.message, self.param = message, param
        self.headers = {"x-should-retry": "false"} if _waste(status, code) else {}
        self.headers |= headers or {}


class DeadlineUnreachable(core.DeadlineError):
    """Refused at once: waiting and running would take longer than the client waits. For admission to raise."""


def refusal(code: str, message: str, param: str | None = None, retry_after: float | None = None) -> ApiError:
    """The error of `CODES[code]`. `retry_after` in seconds is told, as 1 to 120, where a later try may succeed."""
    known = CODES[code]
    headers = {}
    if known.retry == "later" or (known.retry == "known" and retry_after is not None):
        headers["retry-after"] = str(_whole_wait(retry_after))
    elif known.retry == "known":
        headers["x-should-retry"] = "false"
    return ApiError(known.status, known.type, code, message, param, headers)


def unsupported(name: str, why: str) -> ApiError:
    """The error of a field that is known, and asks for what is not to be had here."""
    return refusal("unsupported_parameter", f"{name} is not supported: {why}", name)


def to_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; what is unknown becomes `internal_error`, without its text."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, ClientDisconnect):
        return refusal("cancelled", "the client closed the connection before the request was complete")
    if isinstance(error, MemoryError):
        return refusal(
            "insufficient_memory", f"{error or 'out of memory'}; ask for a smaller size or fewer outputs", "size"
        )
    if isinstance(error, core.OmnimuseError):
        return _of_core(error)
    return refusal("internal_error", "the server met an error it did not expect; its log has it under the request id")


def body(error: ApiError) -> dict[str, Any]:
    """The JSON every error is: `{"error": {message, type, param, code}}`, scrubbed; the message names the field."""
    param = None if error.param is None else scrub(error.param)
    return {"error": {"message": scrub(_naming(error)), "type": error.type, "param": param, "code": error.code}}


def _naming(error: ApiError) -> str:
    """The message, with the name of the field in front where it says nothing of it: many clients show it alone."""
    field = re.split(r"[.\[]", error.param or "")[0]
    named = re.search(rf"(?<!\w){re.escape(field)}(?!\w)", error.message)
    plain = named or not field or error.status != 400  # elsewhere it is no field, but the request as a whole
    return error.message if plain else f"{error.param}: {error.message}"


def to_json(value: Any) -> bytes:
    """`value` as JSON in ASCII: one line, whatever characters are in it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


async def on_unexpected_error(
    work: Callable[[], Awaitable[None]], answer: Callable[[ApiError], Awaitable[None]], name: str
) -> dict[str, Any]:
    """Do `work`; if it raises, `answer` is given what the client is told (`tried`). What the log has of that: the code
    and the field, and none of the words that a client has said.
    """
    if not isinstance(told := await tried(work(), name), ApiError):
        return {}
    await answer(told)
    return {"error": told.code, "param": (told.param or "")[:200]}


async def tried(work: Awaitable[T], name: str) -> T | ApiError:
    """What `work` gives; if it raises, what the client is told. What no client caused is logged under `name`."""
    try:
        return await work
    except Exception as error:
        told = to_api_error(error)
        if told.code in NOTED:
            logger.error("%s failed", name, exc_info=error)
        return told


_SCRUBS = (
    (re.compile(r"Traceback \(most recent call last\).*", re.DOTALL), "(details are in the server's log)"),
    (re.compile(r"\b(?:ipc|tcp|inproc|file|unix)://\S*"), "(an address)"),
    # Absolute paths; `/v1/...` is ours and public. `image/png` and `1/2` have a word before the slash.
    (re.compile(r"(?<![\w./:~])~?/(?!v1\b)[\w.@+~-]+(?:/[\w.@+~-]*)+"), "(a path)"),
    (re.compile(r"\b[A-Za-z]:\\[^\s'\"]+"), "(a path)"),
    (re.compile(r"\b0x[0-9a-fA-F]{6,}\b"), "(an address)"),
    (re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"), "(an address)"),
    (re.compile(r"\bport \d+"), "a port"),
)


def scrub(text: str) -> str:
    """`text` without what describes this machine (paths, addresses, ports, tracebacks), at most MAX_MESSAGE long."""
    text = text[: 4 * MAX_MESSAGE]
    for pattern, instead in _SCRUBS:
        text = pattern.sub(instead, text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _waste(status: int, code: str) -> bool:
    """Whether a second try of the same request is useless: the client is told, since it retries by itself."""
    known = CODES.get(code)
    return (400 <= status < 500 and status != 429) or (known is not None and known.retry == "never")


def _whole_wait(seconds: float | None) -> int:
    """Seconds for `retry-after`: clients ignore numbers outside 1 to 120."""
    if seconds is None or not math.isfinite(seconds):
        return 5
    return min(max(math.ceil(seconds), 1), 120)


_HTTP = {
    400: "invalid_form",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    415: "unsupported_media_type",
    416: "invalid_range",
}


def _of_http(error: HTTPException) -> ApiError:
    """An error of the framework: only the router (404, 405) and its form parser (400) raise these."""
    code = _HTTP.get(error.status_code, "internal_error")
    able = (error.headers or {}).get("Allow", "")
    messages = {
        "not_found": "there is nothing at this path; the paths are listed at /openapi.json",
        "method_not_allowed": f"this path does not know this method{f'; it knows {able}' if able else ''}",
    }
    told = refusal(code, messages.get(code, str(error.detail)))
    return ApiError(told.status, told.type, code, told.message, None, told.headers | dict(error.headers or {}))


def _of_core(error: core.OmnimuseError) -> ApiError:
    """The first rule whose class `error` is; narrower classes stand first."""
    code = next((code for kind, code in _RULES if isinstance(error, kind)), "internal_error")
    param = error.param if isinstance(error, core.RequestError) else None
    wait = error.retry_after if isinstance(error, core.CapacityError) else None
    message = str(error)
    if code == "internal_error":
        message = "the server is not set up for this request; its log has the reason under the request id"
    return refusal(code, message, param, wait)


_RULES: tuple[tuple[type[core.OmnimuseError], str], ...] = (
    (DeadlineUnreachable, "deadline_unreachable"),
    (core.DeadlineError, "deadline_exceeded"),
    (core.RequestCancelled, "cancelled"),
    (core.RequestError, "invalid_value"),
    (core.UnsupportedError, "unsupported_by_server"),
    (core.AdaptersFullError, "adapters_full"),
    (core.CapacityError, "queue_full"),
    (core.PoisonError, "worker_crash"),
    (core.WorkerLostError, "worker_lost"),
    (core.EngineClosedError, "server_draining"),
    (core.EngineDeadError, "engine_dead"),
    (core.ModelError, "model_error"),
    (core.NumericalError, "numerical_error"),
    (core.StorageError, "storage_full"),
)
