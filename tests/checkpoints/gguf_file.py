"""Weights in one GGUF file, as people share them: `write` packs a network's tensors into blocks.

What gguf can pack it packs; of other formats it gets random blocks with scales of a usual size, and the network
whatever weights these stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from omnimuse.quant.blocks import BLOCKS

MADE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What gguf packs."""


def random_blocks(kind: str, rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """Bytes of `rows` of weights in the format `kind`."""
    rng, blocks = np.random.default_rng(seed), BLOCKS[kind]
    raw = rng.integers(0, 256, (rows * inputs // blocks.inputs, blocks.size), dtype=np.uint8)
    for start in blocks.floats:
        scales = rng.normal(0, 0.002, (len(raw), 1)).astype(np.float16)
        raw[:, start : start + 2] = scales.view(np.uint8)
    return raw.reshape(rows, -1)


def write(
    path: Path,
    tensors: dict[str, Tensor],
    kind_of: Callable[[str, Tensor], str],
    architecture: str = "tiny",
    facts: Mapping[str, int | float] = MappingProxyType({}),
) -> Path:
    """Write `tensors` to `path`, each as `kind_of` says: the name of a format, `F32`, `F16` or `BF16`; and `facts` of
    a model of that `architecture`.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name(path.stem)
    for name, fact in facts.items():
        (writer.add_float32 if isinstance(fact, float) else writer.add_uint32)(f"{architecture}.{name}", fact)
    for name, tensor in tensors.items():
        kind, data = kind_of(name, tensor), tensor.float().numpy()
        if kind in MADE or kind == "BF16":
            packed = gguf.quants.quantize(data, GGMLQuantizationType[kind])
        elif kind in BLOCKS:
            packed = random_blocks(kind, *data.shape)
        else:
            packed = data.astype(np.float16 if kind == "F16" else np.float32)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def usual(name: str, tensor: Tensor) -> str:
    """As such files are: what has no whole blocks, or is no matrix, in floats; several formats side by side."""
    if tensor.ndim == 2 and tensor.shape[1] % 256 == 0 and "pad_token" not in name:
        return "Q6_K" if "layers.1." in name else "Q4_K"
    return of_32(name, tensor)


def of_32(name: str, tensor: Tensor) -> str:
    """So, in blocks of 32 alone, which gguf packs: what they stand for is near the weights."""
    if tensor.ndim != 2 or tensor.shape[1] % 32 or "pad_token" in name:
        return "F32" if tensor.ndim <= 2 else "F16"
    last = "to_v" in name or ".v." in name
    return "BF16" if "_embedder" in name else "Q5_0" if last else "Q4_0" if "att" in name else "Q8_0"


def exact(file: Path) -> dict[str, Tensor]:
    """Every tensor in the file, as gguf unpacks it."""
    found = {}
    for each in gguf.GGUFReader(file, "c").tensors:
        shape = [int(size) for size in reversed(each.shape)]
        found[each.name] = torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type)).reshape(shape)
    return found
