"""`sglang.multimodal_gen.runtime.managers.forward_context`: what a network may ask for while it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omnimuse.compat.composed.names import no_attribute, no_name
from omnimuse.compat.contract.surroundings import here


@dataclass
class ForwardContext:
    """The number of the step; -1 outside of one."""

    current_timestep: int
    attn_metadata: Any = None
    forward_batch: Any = None

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def get_forward_context() -> ForwardContext:
    """That of the call in which this is asked."""
    step = here("get_forward_context").step
    return ForwardContext(-1 if step is None else step)


@contextmanager
def set_forward_context(current_timestep: int, attn_metadata: Any = None, forward_batch: Any = None) -> Iterator[None]:
    """Say which step is taken while a network is called. Attention needs nothing of it."""
    place = here("set_forward_context")
    before, place.step = place.step, current_timestep
    try:
        yield
    finally:
        place.step = before


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
