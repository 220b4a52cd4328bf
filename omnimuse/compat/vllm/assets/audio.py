"""`vllm.assets.audio`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.assets.base import Asset


class AudioAsset(Asset):
    """A sound among the samples."""

    what = "sound"


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
