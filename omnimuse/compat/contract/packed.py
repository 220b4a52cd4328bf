"""Weights in fewer bits for pipelines from elsewhere: linear layers in blocks of their networks, once they are read.

Which layers and how is as in `worker/quantize.py`, but that a network is whole in memory before it is packed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from omnimuse.compat.vllm.model_executor.layers.linear import LinearBase
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.loader.tensors import matches, stored_tensors
from omnimuse.loader.to_pack import arithmetic_of, left
from omnimuse.quant.linear import PackedRows, QuantizedLinear
from omnimuse.quant.schemes import SCHEMES, Scheme

NETWORKS = ("transformer", "transformer_2", "dit")
"""Parts of a pipeline that run at every step, which are packed if nobody says what else."""


def pack(parts: Mapping[str, nn.Module], config: Config, device: torch.device) -> list[Choice]:
    """Pack what was asked for, of the `parts` of a pipeline by their names, which run on `device`; what was packed.

    ConfigError for a name that is not there or has no linear layers in blocks, and for ranks that share weights.
    """
    if not config.quantize.schemes:
        return []
    if config.parallel.tensor > 1:
        raise ConfigError(
            f"quantize cannot be with parallel tensor={config.parallel.tensor}: a scale belongs to whole rows of "
            "weights, of which ranks would have parts; leave one of them out"
        )
    able = {name: layers for name, part in parts.items() if (layers := _packable(part))}
    asked = dict(config.quantize.schemes)
    every = asked.pop("", None)
    chosen = {name: every for name in NETWORKS if every and name in able} | asked
    if not chosen or (unknown := sorted(chosen.keys() - able.keys())):
        what = ", ".join(f"{name}={chosen[name]}" for name in unknown) if chosen else every
        raise ConfigError(
            f"quantize {what} cannot be: packed are linear layers in lists of blocks, which here "
            f"{' and '.join(able) or 'no part'} has"
        )
    choices, unused = [], set(config.quantize.skip)
    for name, scheme in chosen.items():
        unused -= {pattern for pattern in unused if any(matches(path, pattern) for path in able[name])}
        layers = left(able[name], config.quantize.skip, f"{name}={scheme}")
        kinds = dict[torch.dtype, None]()
        for path, layer in layers.items():
            kinds[arithmetic := arithmetic_of(device, layer.weight.dtype)] = None
            _pack(parts[name], path, layer, SCHEMES[scheme], arithmetic)
        told = " and ".join(str(kind).removeprefix("torch.") for kind in kinds)
        how = f"asked for: {len(layers)} layers, once they are read, multiplied in {told}"
        choices.append(Choice("quantize", name, scheme, how))
    if unused:
        raise ConfigError(f"quantize skip={', '.join(sorted(unused))} fits no layer that would be quantized")
    return choices


def _packable(part: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers in the lists of blocks of a network, by their paths, whose weights are their own."""
    blocks = [block for each in part.modules() if isinstance(each, nn.ModuleList) for block in each]
    inside = {id(each) for block in blocks for each in block.modules()}
    alone = {names[0] for _, names in stored_tensors(part).values() if len(names) == 1}
    return {
        path: layer
        for path, layer in part.named_modules()
        if (type(layer) is nn.Linear or isinstance(layer, LinearBase))
        and id(layer) in inside
        and f"{path}.weight" in alone
    }


def _pack(part: nn.Module, path: str, layer: nn.Linear, scheme: Scheme, arithmetic: torch.dtype) -> None:
    with torch.device("meta"):
        shape = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)
    packed = QuantizedLinear(shape, scheme, arithmetic)
    packed.hold({part: torch.empty_like(each, device=layer.weight.device) for part, each in packed.packed.items()})
    PackedRows(scheme, packed.packed, layer.in_features).copy_(layer.weight.detach())
    if isinstance(layer, LinearBase):
        layer.packed = packed
        del layer.weight
    else:
        packed.bias = layer.bias
        part.set_submodule(path, packed)
