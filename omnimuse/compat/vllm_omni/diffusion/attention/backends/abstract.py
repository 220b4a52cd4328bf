"""`vllm_omni.diffusion.attention.backends.abstract`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from omnimuse.compat.contract.names import no_name


@dataclass
class AttentionMetadata:
    """What an attention site is told beside queries, keys and values.

    `attn_mask` is [B, K] with what is not 0 to be attended to, or broadcasts to [B, N, S, K]. Of a joint sequence the
    other part may come here, [B, J, N, H] each; it stands in front or at the rear. `extra` are hints for kernels; one
    that says which keys count is refused.
    """

    attn_mask: Tensor | None = None
    joint_attn_mask: Tensor | None = None
    joint_query: Tensor | None = None
    joint_key: Tensor | None = None
    joint_value: Tensor | None = None
    joint_strategy: Literal["front", "rear"] = "front"
    extra: dict[str, Any] = field(default_factory=dict)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
