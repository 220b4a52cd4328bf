"""The build passes for packed weights of what writes, whose tokens come one at a time: which layers read theirs once
for such (`quant/schemes.py`), told before anything is read; and those of four bits are laid for that in the place of
what was read (`quant/abreast.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from omnimuse.ar.kv import Decoder
from omnimuse.core.config import Choice
from omnimuse.quant.abreast import Abreast, abreast_for, laid, outputs_together
from omnimuse.quant.linear import QuantizedLinear, quantized_layers
from omnimuse.quant.schemes import READ_IN, Reading

if TYPE_CHECKING:
    from omnimuse.worker.build import Build

FOUR, EIGHT = "four", "eight"


def choose_reading(under: Build) -> None:
    """Which layers read their weights once for tokens that are written, or would in another format.

    Where nobody asked for a number format, and it is float32 as bfloat16 would be slow, they round such tokens to
    bfloat16, and nothing else is: prompts and attention are as fast as ever.
    """
    for name in under.networks:
        able, dtype = _able(under, name), _word(under.formats[name].default)
        bits = " and ".join(kind for kind in (FOUR, EIGHT) if kind in able.values())
        value, why, rounds = f"{bits} bits read once", "torch's kernels for few rows", _rounds(under, name)
        if rounds:
            why += f", slow in {dtype}: each token is rounded to {_word(READ_IN)} for them, as nobody asked for a dtype"
        elif not _fits(under, name):
            value = "floats"
            instead = "; dtype=auto or bfloat16 reads these as they are" if outputs_together() else ""
            why = f"made of all weights for every token in {dtype}{instead}"
        for layer in able if rounds else ():
            layer.rounds = True
        if able:
            under.choices.append(Choice("quantize", f"{name} tokens", value, f"{len(able)} layers: {why}"))


def lay_abreast(under: Build) -> None:
    """Those of four bits, laid so; one at a time, so that no other is there twice."""
    for name in under.here:
        fits = name in under.networks and (_fits(under, name) or _rounds(under, name))
        for layer in (layer for layer, bits in _able(under, name).items() if fits and bits == FOUR):
            packed = layer.packed
            if packed["weight"].is_meta:  # another rank has it
                continue
            chosen = _chosen(layer)
            assert chosen is not None
            layer.hold(laid(layer.scheme, packed, chosen))
            layer.scheme = chosen


def _fits(under: Build, name: str) -> bool:
    """Whether a network computes in the format in which weights are read once."""
    return under.formats[name].default == READ_IN


def _rounds(under: Build, name: str) -> bool:
    """Whether it may round tokens to that: it is in float32 by no word of anybody's, nor of its reference."""
    asked = under.dtype_asked or under.found.spec.components[name].dtype
    return not asked and under.formats[name].default == torch.float32 and bool(outputs_together())


def _able(under: Build, name: str) -> dict[QuantizedLinear, str]:
    """The layers for which it is there, of what writes on a processor, and in how many bits their weights are."""
    network = under.networks.get(name)
    if under.device.type != "cpu" or not isinstance(network, Decoder):
        return {}
    config = under.found.config
    moves = config.offload.mode != "none" or config.parallel.shard > 1
    found = dict[QuantizedLinear, str]()
    for layer in quantized_layers(network).values():
        if isinstance(layer.scheme, Reading) and layer.scheme.most(layer.inputs):
            found[layer] = EIGHT
        elif not moves and _chosen(layer) is not None:
            found[layer] = FOUR
    return found


def _chosen(layer: QuantizedLinear) -> Abreast | None:
    return abreast_for(layer.scheme, *layer.like().shape)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
