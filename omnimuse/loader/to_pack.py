"""Which layers are packed into fewer bits, and what they are multiplied in: of networks of ours and from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from omnimuse.core.errors import ConfigError
from omnimuse.layers.native import native_bfloat16
from omnimuse.loader.tensors import matches

L = TypeVar("L")


def left(chosen: Mapping[str, L], skip: Sequence[str], asked: str) -> dict[str, L]:
    """What `skip` leaves of the layers that are `chosen`; ConfigError if that is nothing of a component for which that
    was `asked`.
    """
    found = {path: layer for path, layer in chosen.items() if not any(matches(path, pattern) for pattern in skip)}
    if chosen and not found:
        raise ConfigError(
            f"quantize skip={', '.join(skip)} leaves nothing of {asked.partition('=')[0]} to be quantized; leave out "
            f"either that or {asked}"
        )
    return found


def arithmetic_of(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What packed weights become to be multiplied: float32 where bfloat16 has no units and would only be slower."""
    slow = dtype == torch.bfloat16 and not native_bfloat16(device)[0]
    return torch.float32 if slow else dtype
