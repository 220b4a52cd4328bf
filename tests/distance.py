"""How far what was made is from what should have been."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of what is between two tensors of one shape, relatively; of narrow formats in float32."""
    assert found.shape == expected.shape
    wide = torch.promote_types(expected.dtype, torch.float32)
    return float((found.to(wide) - expected.to(wide)).norm() / expected.to(wide).norm())
