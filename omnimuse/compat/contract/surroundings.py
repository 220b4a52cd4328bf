"""Where code of the contract finds itself: its functions take no arguments and ask for a device, a rank, a step.

The engine passes such things. So what these functions answer is bound around each call of such code, to a variable of
this context, and is gone when the call returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from omnimuse.core.errors import ModelError
from omnimuse.parallel.mesh import Axis, Mesh


@dataclass
class Surroundings:
    """A device, a number format, the ranks that share the work, the configuration, and the step that is being taken.

    `calls` is where a step cache finds what it remembers, while a step is taken for one request alone. `spread`: the
    tokens that networks see are this rank's share.
    """

    device: torch.device
    dtype: torch.dtype
    mesh: Mesh
    config: Any
    step: int | None = None
    calls: Any = None
    spread: bool = False


HERE: ContextVar[Surroundings] = ContextVar("surroundings of code that is written to the contract")


@contextmanager
def within(surroundings: Surroundings) -> Iterator[Surroundings]:
    """For the length of a call, this is where the code called finds itself."""
    surroundings.spread = False
    token = HERE.set(surroundings)
    try:
        yield surroundings
    finally:
        HERE.reset(token)


def inside() -> bool:
    """Whether somebody asks from within such a call."""
    return HERE.get(None) is not None


def here(asker: str) -> Surroundings:
    """The surroundings; ModelError outside of a call, where nobody can say. `asker` is the contract's function."""
    found = HERE.get(None)
    if found is None:
        raise ModelError(
            f"{asker} was called outside of an engine, where there is no device and no rank; call it in a pipeline's "
            "`__init__`, its `forward` or one of its steps"
        )
    return found


def axis(name: str, asker: str) -> Axis:
    """This rank's place on an axis; a single one outside of an engine, so that a network can be made by itself."""
    return here(asker).mesh.axis(name) if inside() else Axis()
