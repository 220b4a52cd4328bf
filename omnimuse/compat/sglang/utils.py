"""`sglang.multimodal_gen.utils`: number formats by the names that configurations have for them."""

from __future__ import annotations

from typing import Any

import torch

from omnimuse.compat.composed.names import no_name

PRECISION_TO_TYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
