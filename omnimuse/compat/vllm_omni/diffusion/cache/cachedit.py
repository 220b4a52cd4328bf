"""`vllm_omni.diffusion.cache.cachedit`: how a network says which of its lists of blocks may be cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


@dataclass(frozen=True)
class CacheDiTAdapterConfig:
    """The attributes that hold a network's blocks, which a step cache goes around; their order is theirs in a forward.

    What goes from block to block the engine finds out by itself, so the patterns are not read.
    """

    block_forward_patterns: Mapping[str, Any]
    has_separate_cfg: bool = False
    cached_adapter_cls: Any = None
    check_forward_pattern: bool = True

    def __post_init__(self) -> None:
        if self.cached_adapter_cls is not None:
            raise ModelError(
                f"cached_adapter_cls={self.cached_adapter_cls!r} is not taken: the engine's own step caches go around "
                "blocks; leave it out"
            )


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
