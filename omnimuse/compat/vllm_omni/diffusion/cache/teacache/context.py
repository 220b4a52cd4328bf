"""`vllm_omni.diffusion.cache.teacache.context`: one call of a network, taken apart for TeaCache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name


@dataclass
class CacheContext:
    """What an extractor makes of a call: all that comes before the blocks is done, and what follows can be called.

    `modulated_input` is what is watched from step to step, of any shape. `run_transformer_blocks` gives the hidden
    states behind the blocks first, of the shape of `hidden_states`; `postprocess` makes of them what the network
    returns. The text's states are not looked at: nothing behind the blocks is given them.
    """

    modulated_input: Tensor
    hidden_states: Tensor
    encoder_hidden_states: Tensor | None
    temb: Tensor
    run_transformer_blocks: Callable[[], tuple[Tensor, ...]]
    postprocess: Callable[[Tensor], Any]
    extra_states: dict[str, Any] | None = None

    def validate(self) -> None:
        """TypeError for a part that cannot be used."""
        for name in ("modulated_input", "hidden_states"):
            if not isinstance(value := vars(self)[name], Tensor):
                raise TypeError(f"CacheContext.{name} is a {type(value).__name__}; give a tensor")
        for name in ("run_transformer_blocks", "postprocess"):
            if not callable(vars(self)[name]):
                raise TypeError(f"CacheContext.{name} cannot be called; give a function")

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
