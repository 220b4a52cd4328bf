"""The language model that reads the texts of FLUX.2 dev, up to the last layer that the network is told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.mistral import RULES as MISTRAL
from omnimuse.components.mistral import MistralConfig
from omnimuse.components.qwen3 import Qwen3Encoder, only
from omnimuse.models.flux2_dev.spec import LAYERS

RULES = (*MISTRAL, *only(LAYERS[-1]))


class DevTextEncoder(Qwen3Encoder):
    """Mistral without what looks at pictures, and without the layers that nobody reads, a quarter of them."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DevTextEncoder:
        return cls(MistralConfig.from_dict(config), LAYERS[-1])
