"""What the routes of videos and of sounds share: their jobs are listed, waited for and told in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.requests import Request

from omnimuse.server.errors import CODES, refusal
from omnimuse.server.jobs.row import Job, Page
from omnimuse.server.protocol.images import JobError

PREVIEWS = 8
"""How many looks a watcher gets at an unfinished output, at least where it has as many steps."""
POLLS = 10
"""How often a client is told to ask for a job, over the time it takes; clients keep the first interval they hear."""
MAX_PAGE = 100
PAGES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "after": {"type": "string"},
        "limit": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        "order": {"type": "string", "enum": ["asc", "desc"]},
    }
)
"""The query of a list, for the OpenAPI document."""


def job_error(job: Job) -> JobError | None:
    """Why it failed, as clients are told."""
    error = job.error
    if error is None:
        return None
    return JobError(code=error.code, message=error.message, param=error.param, type=CODES[error.code].type)


def asked_page(request: Request) -> Page:
    """`after`, `limit` and `order` of the query; ApiError for anything else."""
    query = request.query_params
    for name in query:
        if name not in PAGES:
            raise refusal("unknown_parameter", f"a list knows after, limit and order, not {name[:40]!r}", name[:40])
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= MAX_PAGE):
        raise refusal("invalid_value", f"limit={limit[:40]!r} is not allowed; use 1 to {MAX_PAGE}", "limit")
    if order not in ("asc", "desc"):
        raise refusal("invalid_value", f"order={order[:40]!r} is not allowed; use asc or desc", "order")
    return Page(query.get("after"), int(limit), order == "asc")


def poll_after(left: float | None) -> str:
    """The milliseconds after which it makes sense to ask again, when `left` seconds are; a header's value."""
    return str(1000 if left is None else int(1000 * min(max(left / POLLS, 0.25), 10)))


def rounded(seconds: float | None) -> float | None:
    """To hundredths."""
    return None if seconds is None else round(seconds, 2)
