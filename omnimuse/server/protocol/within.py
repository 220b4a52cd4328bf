"""What every answer that is JSON has room for: what a request took within its stages, where it asks for that."""

from __future__ import annotations

from pydantic import BaseModel


class Within(BaseModel):
    """With `block_timings` in the request: seconds of every block of a network, by name."""

    block_timings: dict[str, float] | None = None
