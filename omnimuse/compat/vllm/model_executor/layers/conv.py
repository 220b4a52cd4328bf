"""`vllm.model_executor.layers.conv`."""

from __future__ import annotations

from torch import nn


class Conv3dLayer(nn.Conv3d):
    """torch's own."""
