"""`vllm.assets.image`."""

from __future__ import annotations

from typing import Any

from omnimuse.compat.contract.names import no_name
from omnimuse.compat.vllm.assets.base import Asset


class ImageAsset(Asset):
    """A picture among the samples."""

    what = "picture"


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
