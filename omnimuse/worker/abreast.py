"""The build passes that lay weights of four bits for the tokens of what writes (`quant/abreast.py`): which layers, told
before anything is read, and then in the place of what was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from omnimuse.ar.kv import Decoder
from omnimuse.core.config import Choice
from omnimuse.quant.abreast import Abreast, abreast_for, laid
from omnimuse.quant.linear import QuantizedLinear, quantized_layers

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


def tell_abreast(under: Build) -> None:
    """Of how many layers tokens are multiplied by reading four bits once; or would be, in another format."""
    for name in under.networks:
        value, dtype = "four bits read once", str(under.formats[name].default).removeprefix("torch.")
        why = "outputs lie beside each other for torch's kernel, tried on this machine"
        if not _layers(under, name):
            value, why = (
                "floats",
                f"made of all weights for every token in {dtype}; dtype=bfloat16 reads four bits once",
            )
        if count := len(_able(under, name)):
            under.choices.append(Choice("quantize", f"{name} tokens", value, f"{count} layers: {why}"))


def lay_abreast(under: Build) -> None:
    """Those layers, laid so; one at a time, so that no other is there twice."""
    for name in under.here:
        for layer in _layers(under, name):
            packed = layer.packed
            if packed["weight"].is_meta:  # another rank has it
                continue
            chosen = _chosen(layer)
            assert chosen is not None
            layer.hold(laid(layer.scheme, packed, chosen))
            layer.scheme = chosen


def _layers(under: Build, name: str) -> list[QuantizedLinear]:
    """The layers of a network for which it is there."""
    if under.formats[name].default != torch.bfloat16:
        return []
    return _able(under, name)


def _able(under: Build, name: str) -> list[QuantizedLinear]:
    """Those for which it is there in bfloat16: of what writes on a processor, with all its weights."""
    config, network = under.found.config, under.networks.get(name)
    moves = config.offload.mode != "none" or config.parallel.shard > 1
    if under.device.type != "cpu" or moves or not isinstance(network, Decoder):
        return []
    return [layer for layer in quantized_layers(network).values() if _chosen(layer) is not None]


def _chosen(layer: QuantizedLinear) -> Abreast | None:
    return abreast_for(layer.scheme, *layer.like().shape)
