"""`sglang.multimodal_gen.configs.sample.base`: an older place of `sampling_params`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.composed.names import no_name
from omnimuse.compat.sglang.configs.sample.sampling_params import DataType, SamplingParams

__all__ = ["DataType", "SamplingParams"]


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
