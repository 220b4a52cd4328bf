"""What every answer that is JSON has room for: what a request took within its stages, where it asks for that."""

from __future__ import annotations

from pydantic import BaseModel


class Within(BaseModel):
    """With `block_timings` in the request: seconds of every block of a network, by name, and the most bytes that the
    worker held when a run of it was done; by stage the seconds of every step, as `steps`, and the bytes that were held
    when it was done, of stages without steps too, as `bytes`. A stage is called as in `timings`, without the `_s`.
    """

    block_timings: dict[str, float] | None = None
    block_bytes: dict[str, int] | None = None
    steps: dict[str, list[float]] | None = None
    bytes: dict[str, list[int]] | None = None
