"""`vllm_omni.diffusion.cache.teacache.config`: how much a network's steps may differ, and what rescales that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.core.caches import Fits, TeaFit
from omnimuse.core.errors import ConfigError

_MODEL_COEFFICIENTS: dict[str, Sequence[float]] = {}
"""By the class of a network, the polynomial that rescales the change it sees, its highest power first; files of
pipelines add theirs."""


@dataclass
class TeaCacheConfig:
    """TeaCache for one class of networks; `coefficients` None: those that its file has added.

    ConfigError where there are none.
    """

    rel_l1_thresh: float = 0.2
    coefficients: Sequence[float] | None = None
    transformer_type: str = ""

    def __post_init__(self) -> None:
        if self.coefficients is None:
            if self.transformer_type not in _MODEL_COEFFICIENTS:
                raise ConfigError(
                    f"TeaCache has no coefficients for {self.transformer_type or 'a network without a name'}; add them "
                    'to _MODEL_COEFFICIENTS in the pipeline\'s file, or give them in cache_config={"coefficients": ...}'
                )
            self.coefficients = _MODEL_COEFFICIENTS[self.transformer_type]

    @property
    def fits(self) -> Fits:
        """The same in our words."""
        return Fits(TeaFit(tuple(map(float, self.coefficients or ())), self.rel_l1_thresh))

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
