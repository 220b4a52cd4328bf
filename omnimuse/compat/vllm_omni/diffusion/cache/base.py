"""`vllm_omni.diffusion.cache.base`: the mark of a network whose steps may be cached."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from omnimuse.compat.contract.names import no_name


class CachedTransformer(nn.Module):
    """A network whose steps may be cached, which the engine's own step caches do around its blocks."""

    enable_separate_cfg: ClassVar[bool] = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        if kwargs:
            raise TypeError(f"CachedTransformer takes no arguments, got {', '.join(sorted(kwargs))}")
        self.do_true_cfg = False

    def __init_subclass__(cls, enable_separate_cfg: bool = True, **kwargs: Any) -> None:
        cls.enable_separate_cfg = enable_separate_cfg
        super().__init_subclass__(**kwargs)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
