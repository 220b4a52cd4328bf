"""The language model that reads Klein's texts, up to the last layer that the network is told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.qwen3 import RULES as QWEN3
from omnimuse.components.qwen3 import Qwen3Encoder, only
from omnimuse.components.qwen3_facts import Qwen3Config
from omnimuse.models.flux2.spec import LAYERS

RULES = (*QWEN3, *only(LAYERS[-1]))


class KleinTextEncoder(Qwen3Encoder):
    """Qwen3 without the layers that nobody reads, a quarter of the published ones."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KleinTextEncoder:
        return cls(Qwen3Config.from_dict(config), LAYERS[-1])
