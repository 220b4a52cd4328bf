"""`vllm_omni.diffusion.lora.loader`: what pipelines inherit to read adapters themselves, by the names of families."""

from __future__ import annotations

from typing import Any, NoReturn

from omnimuse.compat.contract.names import no_name
from omnimuse.core.errors import ModelError


class LoraLoaderMixin:
    """What all have: an adapter that a pipeline would read is refused, for here requests ask for theirs."""

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> NoReturn:
        """ModelError, always."""
        raise ModelError(f"{type(self).__name__} cannot read adapters of its own: requests ask for them, with `loras`")


def __getattr__(name: str) -> Any:
    if name.endswith("LoraLoaderMixin"):
        return LoraLoaderMixin
    raise no_name(__name__, name)
