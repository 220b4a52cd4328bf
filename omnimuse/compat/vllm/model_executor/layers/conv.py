"""`vllm.model_executor.layers.conv`."""

from __future__ import annotations

from typing import Any

from torch import nn

from omnimuse.compat.contract.names import no_name


class Conv3dLayer(nn.Conv3d):
    """torch's own."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
