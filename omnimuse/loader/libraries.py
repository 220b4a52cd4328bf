"""Every library whose packed weights are read here, by the name that configurations have for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.loader import bitsandbytes, torchao
from omnimuse.loader.foreign import Packed

READERS: Mapping[str, Callable[[Any, Mapping[str, str]], dict[str, Packed]]] = MappingProxyType(
    {"bitsandbytes": bitsandbytes.packed, "torchao": torchao.packed}
)
"""`quant_method` -> what it packed in a safetensors file that is open, whose tensors have such formats."""


def packed_weights(path: Path, handle: Any, kinds: Mapping[str, str]) -> dict[str, Packed]:
    """What any of them packed in the safetensors file `path`, open as `handle`, whose tensors have such formats.
    ModelError for what is not read, and where what belongs to packed weights is not there as they say.
    """
    try:
        return {name: each for find in READERS.values() for name, each in find(handle, kinds).items()}
    except ModelError as problem:
        raise ModelError(f"{path}: {problem}") from None
