"""Tables in which packed numbers are looked up, on the device that computes.

Each is made once for each device: the host waits while one is uploaded, and every layer of a step asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def table(make: Callable[..., Tensor], device: torch.device, *of: object) -> Tensor:
    """What `make` makes of `of`, on `device`; nobody changes it."""
    return _made(make, device, of)


@cache
def _made(make: Callable[..., Tensor], device: torch.device, of: tuple[object, ...]) -> Tensor:
    with torch.inference_mode(False):  # whoever is the first to ask
        return make(*of).to(device)


def hold_still() -> None:
    """Tell torch's compiler that the tables never change. Before blocks are compiled: it takes a second to import."""
    torch.compiler.assume_constant_result(table)
