"""The build pass that packs weights: which layers of which components, by which scheme, and in which arithmetic.

Layers of blocks that repeat are packed, where nearly all weights are; what is before and after them, and what the
reference keeps in float32, stays as it is. The loader packs while it reads, so the whole is never in memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plans import Slices
from omnimuse.layers.network import Network
from omnimuse.loader.headers import stored_in
from omnimuse.loader.named import rules_of
from omnimuse.loader.rules import apply_rules
from omnimuse.loader.tensors import DtypePolicy, matches, stored_tensors
from omnimuse.loader.to_pack import arithmetic_of, left
from omnimuse.parallel.mesh import TENSOR, Axis
from omnimuse.parallel.tensor import GatheredLinear, SummedLinear
from omnimuse.quant.packings import PACKINGS
from omnimuse.quant.schemes import SCHEMES, Divisible, Packing
from omnimuse.quant.stacked import Stacked
from omnimuse.worker.packed_shares import packed_layer

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


def quantize(under: Build) -> None:
    """Layers with packed weights in the place of linear ones, as asked for; a door does its own."""
    config = under.found.config
    if under.found.spec.library:
        return
    packed = _as_packed(under)
    if not config.quantize.schemes and not packed:
        return
    _check_ranks(config)
    unused = set(config.quantize.skip)
    for name, scheme in _asked(under, packed).items():
        if name in packed:
            raise ConfigError(
                f"quantize {name}={scheme} cannot be: its files are packed already ({packed[name]}); leave quantize "
                "out, or use the checkpoint that this was made from"
            )
        module, policy = under.modules[name], under.formats[name]
        chosen = packable(module, policy)
        unused -= {pattern for pattern in unused if any(matches(path, pattern) for path in chosen)}
        if not chosen:
            raise ConfigError(f"quantize {scheme} cannot be: {name} has no linear layers in blocks; leave it out")
        layers = left(chosen, config.quantize.skip, f"{name}={scheme}")
        arithmetic = arithmetic_of(under.device, policy.default)
        cuts, axis = under.held.cuts.get(name, {}), under.mesh.axis(TENSOR)
        share = pack(module, layers, SCHEMES[scheme], arithmetic, cuts, axis)
        under.formats[name] = _with_scales(policy)
        how = f"asked for: {len(layers)} layers, {share:.0%} of the weights"
        under.choices.append(
            Choice("quantize", name, scheme, f"{how}, multiplied in {str(arithmetic).removeprefix('torch.')}")
        )
    if unused:
        raise ConfigError(
            f"quantize skip={', '.join(sorted(unused))} fits no layer that would be quantized; patterns are whole "
            "pieces of names, such as blocks.0 or *.to_out"
        )


def _check_ranks(config: Config) -> None:
    """Whole rows are packed, and a rank keeps columns of them: no part of such a layer could be packed alone."""
    parallel = config.parallel
    if parallel.tensor > 1 and parallel.shard > 1:
        raise ConfigError(
            f"parallel tensor={parallel.tensor} x shard={parallel.shard} cannot be with packed weights: ranks keep "
            "some columns of whole rows, and a part of these has no scales of its own; leave one of both out"
        )


ALONE = Axis()
Layer = nn.Linear | GatheredLinear | SummedLinear
Band = tuple[str, int]
"""What the files call the format of some rows of a layer, and how many these are."""


def _as_packed(under: Build) -> dict[str, str]:
    """Layers as the files of their component have them, where these are packed; how, by component."""
    found = {}
    for name, module in under.modules.items() if under.found.config.model.load == "weights" else ():
        stored = _bands(under, name)
        if not stored:
            continue
        policy, count = under.formats[name], Counter[str]()
        alike: dict[Packing, dict[str, Layer]] = defaultdict(dict)
        cuts = under.held.cuts.get(name, {})
        cut = bool(cuts) or under.found.config.parallel.shard > 1
        for path, layer in packable(module, policy).items():
            bands = stored.get(f"{path}.weight", [])
            packing = _packing(bands, cut=cut)
            if packing is not None and (isinstance(packing, Divisible) or _columns(cuts, path) is None):
                alike[packing][path] = layer
                count["+".join(dict.fromkeys(kind for kind, _ in bands))] += 1
        whole = sum(tensor.numel() for tensor, _ in stored_tensors(module).values())
        share = sum(layer.weight.numel() for layers in alike.values() for layer in layers.values()) / whole
        for packing, layers in alike.items():
            pack(module, layers, packing, arithmetic_of(under.device, policy.default), cuts, under.mesh.axis(TENSOR))
        under.formats[name] = _with_scales(policy)
        others = sum(any(kind in PACKINGS for kind, _ in each) for each in stored.values()) - count.total()
        rest = f"; {others} more become floats when they are read" if others else ""
        found[name] = ", ".join(f"{number} x {kind}" for kind, number in count.most_common()) or "as floats"
        why = f"its files are packed so: {share:.0%} of the weights{rest}"
        under.choices.append(Choice("quantize", name, found[name], why))
    return found


def _packing(bands: list[Band], *, cut: bool) -> Packing | None:
    """How a layer is packed whose rows the files have so; None where it is not, or is `cut` and cannot be."""
    kinds = {kind for kind, _ in bands}
    if not kinds or not kinds <= PACKINGS.keys() or (cut and len(kinds) > 1):
        return None
    if len(kinds) == 1:
        return PACKINGS[bands[0][0]]
    return Stacked(tuple((PACKINGS[kind], rows) for kind, rows in bands))


def _bands(under: Build, name: str) -> dict[str, list[Band]]:
    """What the files of a component hold for each of its tensors, in order; nothing, if no packing is among them."""
    checkpoint, module = under.found.checkpoint, under.modules[name]
    try:
        stored = stored_in(checkpoint.weights(name))
    except ModelError:  # who reads the weights says what is wrong with the files
        return {}
    if not any(each.parts for each in stored.values()):
        return {}
    rules = rules_of(under.found.spec.components[name], checkpoint, name, module)
    parts: dict[str, dict[int, Band]] = defaultdict(dict)
    for source, each in stored.items():
        target = apply_rules(source, rules)
        parts[target.name][target.part] = (each.kind, each.shape[0] if each.shape else 0)
    return {target: [bands[number] for number in sorted(bands)] for target, bands in parts.items()}


def _with_scales(policy: DtypePolicy) -> DtypePolicy:
    return DtypePolicy(policy.default, (*policy.float32, "weight_scale*", "weight_floor*"))


def _asked(under: Build, packed: Collection[str]) -> dict[str, str]:
    """The scheme of every component for which one is asked, `packed` ones too; ConfigError for a name that is none."""
    asked = dict(under.found.config.quantize.schemes)
    every = asked.pop("", None)
    found = dict.fromkeys(under.networks, every) if every else {}
    for name, scheme in asked.items():
        able = name in under.modules and packable(under.modules[name], under.formats[name])
        if not able and name not in packed:
            others = [other for other, module in under.modules.items() if packable(module, under.formats[other])]
            instead = f"use {' or '.join(others)}" if others else "no component has; leave it out"
            why = f"this model has no {name!r} with linear layers in blocks"
            raise ConfigError(f"quantize {name}={scheme} cannot be: {why}; {instead}")
        found[name] = scheme
    return {name: scheme for name, scheme in found.items() if scheme}


def packable(module: nn.Module, policy: DtypePolicy) -> dict[str, Layer]:
    """The linear layers in blocks of `module`, but for those that are kept in float32."""
    stacks = module.stacks() if isinstance(module, Network) else {}
    blocks: list[nn.Module] = [block for stack in stacks.values() for block in stack.blocks()]
    if not stacks:
        blocks = [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]
    inside = {id(part) for block in blocks for part in block.modules()}
    alone = {names[0] for _, names in stored_tensors(module).values() if len(names) == 1}
    return {
        path: layer
        for path, layer in module.named_modules()
        if (type(layer) is nn.Linear or isinstance(layer, GatheredLinear | SummedLinear))
        and id(layer) in inside
        and f"{path}.weight" in alone
        and not any(matches(f"{path}.weight", pattern) for pattern in policy.float32)
    }


def pack(
    module: nn.Module,
    layers: Mapping[str, Layer],
    scheme: Packing,
    arithmetic: torch.dtype,
    cuts: Mapping[str, Slices] = MappingProxyType({}),
    axis: Axis = ALONE,
) -> float:
    """Put packed layers in the place of `layers`; which share of the weights of `module` they had. `cuts` is what is
    here of its tensors, of which ranks of the tensor `axis` have a part each.
    """
    whole = sum(tensor.numel() for tensor, _ in stored_tensors(module).values())
    here = sum(layer.weight.numel() for layer in layers.values())
    for path, layer in layers.items():
        module.set_submodule(path, packed_layer(layer, scheme, arithmetic, _columns(cuts, path), axis))
    return here / max(whole, 1)


def _columns(cuts: Mapping[str, Slices], path: str) -> Slices | None:
    """Which inputs of the layer at `path` are here, where not all are."""
    cut = cuts.get(f"{path}.weight")
    return cut if cut is not None and cut.dim == 1 else None
