"""Adapters for pipelines that put weights into their layers themselves: which layers there are, and how they wear one.

Layers are known by what the checkpoint's files call them: as `Origins` saw them filled, or, in a part that a library
reads, by their own names where the files have them, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from omnimuse.compat.contract.origins import Name, Origins, Piece
from omnimuse.compat.contract.packed import NETWORKS
from omnimuse.compat.door import Wardrobe
from omnimuse.compat.vllm.model_executor.layers.linear import LinearBase
from omnimuse.compat.vllm_omni.diffusion.called import StandIn
from omnimuse.core.plans import Slices, Span
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.headers import stored_in
from omnimuse.loader.sites import Outputs
from omnimuse.lora.adapter import Site
from omnimuse.lora.linear import Adapted, Peg, Rack


@dataclass(frozen=True)
class Renaming:
    """Other names that adapters have for layers, as patterns, and parts of a network that none is for."""

    names: Mapping[str, Any] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()

    def leaves_out(self, outputs: Sequence[Outputs]) -> bool:
        """Whether no adapter is for the layers with these outputs."""
        return any(word in each.path for word in self.excluded for each in outputs)

    def name(self, name: str) -> str:
        """What the checkpoint calls the layer that an adapter calls `name`."""
        for pattern, new in self.names.items():
            for end in (".weight", ".lora_A", ""):  # patterns are written for the names of tensors
                if isinstance(new, str) and re.match(pattern, name + end):
                    return re.sub(pattern, new, name + end).removesuffix(end)
        return name


@dataclass(frozen=True)
class Layers:
    """The linear layers of one component (`loader/sites.py`)."""

    known: Mapping[str, tuple[Outputs, ...]]
    dtypes: Mapping[str, torch.dtype]
    shares: Mapping[str, Slices] = field(default_factory=dict)
    renaming: Renaming = field(default_factory=Renaming)

    def dtype(self, path: str) -> torch.dtype:
        """What the layer at `path` computes in."""
        return self.dtypes[path]

    def share(self, path: str) -> Slices | None:
        """What of it is on this rank; None for all of it."""
        return self.shares.get(path)

    def find(self, name: str, *, flat: bool) -> tuple[Outputs, ...]:
        """What the layer called `name` makes, perhaps by several layers; nothing if there is none."""
        return (self._flat if flat else self.known).get(name if flat else self.renaming.name(name), ())

    @cached_property
    def _flat(self) -> dict[str, tuple[Outputs, ...]]:
        return {name.replace(".", "_"): outputs for name, outputs in self.known.items()}


def wardrobe(
    root: nn.Module,
    checkpoint: Checkpoint,
    origins: Sequence[Origins],
    within: frozenset[str],
    renaming: Mapping[str, Renaming] | None = None,
) -> Wardrobe:
    """What adapters may be for in `root`, once it has its weights. Its parts are components of the checkpoint."""
    sites = {name: Layers(*found) for name, found in traced(root, origins).items()}
    for name, part in root.named_children():
        there = name not in sites and name in checkpoint.components and checkpoint.has_weights(name)
        if there and (found := _named_alike(name, part, checkpoint)):
            sites[name] = found
    for name, told in (renaming or {}).items():
        if name in sites:
            known = {each: outputs for each, outputs in sites[name].known.items() if not told.leaves_out(outputs)}
            sites[name] = replace(sites[name], known=known, renaming=told)
    main = [name for name in (*NETWORKS, *sites) if name in sites]
    return Wardrobe(sites, main[:1], partial(dress, root), within)


def traced(
    root: nn.Module, origins: Sequence[Origins]
) -> dict[str, tuple[dict[str, tuple[Outputs, ...]], dict[str, torch.dtype], dict[str, Slices]]]:
    """By component, its layers by their stored names, their number formats, and what of them is here."""
    linear = {path: part for path, part in _linear(root) if not part.weight.is_meta}
    pieces = {path: [each for origin in origins for each in origin.of(part.weight)] for path, part in linear.items()}
    pieces = {path: found for path, found in pieces.items() if _whole(found, linear[path])}
    parts: dict[Name, dict[str, int]] = {}  # of a stored matrix, the layers with rows of it, in its order
    for path, found in sorted(pieces.items(), key=lambda each: min(piece.top for piece in each[1])):
        for piece in found:
            rows = parts.setdefault(piece.name, {})
            rows[path] = rows.get(path, 0) + piece.at.rows
    ranges = {name: _ranges(rows, _shape(pieces, name)[0]) for name, rows in parts.items()}
    made: dict[str, tuple[dict[str, tuple[Outputs, ...]], dict[str, torch.dtype], dict[str, Slices]]] = {}
    outputs: dict[Name, list[Outputs]] = {}
    for path, found in pieces.items():
        names = list(dict.fromkeys(piece.name for piece in found))
        if not all(name[1].endswith(".weight") and path in ranges[name] for name in names):
            continue
        begins, total = dict[Name, int](), 0
        for name in names:
            start, stop = ranges[name][path]
            begins[name] = total - start
            outputs.setdefault(name, []).append(Outputs(path, total, total + stop - start, found[0].shape[1]))
            total += stop - start
        _, dtypes, shares = made.setdefault(names[0][0], ({}, {}, {}))
        dtypes[path] = linear[path].weight.dtype
        if share := _share(found, begins, total):
            shares[path] = share
    for (component, stored), each in outputs.items():
        made[component][0][stored.removesuffix(".weight")] = tuple(each)
    return made


def _linear(root: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, part in root.named_modules():
        if type(part) is nn.Linear or isinstance(part, LinearBase):
            yield path, part


def _shape(pieces: Mapping[str, Sequence[Piece]], name: Name) -> tuple[int, int]:
    return next(piece.shape for found in pieces.values() for piece in found if piece.name == name)


def _whole(found: Sequence[Piece], layer: nn.Linear) -> bool:
    """Whether these pieces, one below the other, are all of the layer's weights, of one component."""
    place = 0
    for piece in found:
        if piece.at.row != place or piece.at.column or piece.at.columns != layer.weight.shape[1]:
            return False
        place += piece.at.rows
    kinds = {(piece.name[0], piece.shape[1], piece.left) for piece in found}
    return place == layer.weight.shape[0] and len(kinds) == 1


def _ranges(rows: Mapping[str, int], whole: int) -> dict[str, Span]:
    """Which rows of a stored matrix are each layer's, on all ranks, where this one has so many; nothing if unclear."""
    times, rest = divmod(whole, sum(rows.values()))
    if len(rows) == 1:
        return dict.fromkeys(rows, (0, whole))
    found, place = {}, 0
    for path, count in rows.items():
        found[path] = (place, place + count * times)
        place += count * times
    return {} if rest else found


def _share(found: Sequence[Piece], begins: Mapping[Name, int], total: int) -> Slices | None:
    """What of all outputs, or all inputs, these pieces are; None if they are all there is."""
    first = found[0]
    if first.at.columns != first.shape[1]:
        return Slices(1, first.shape[1], ((first.left, first.left + first.at.columns),))
    spans = tuple((begins[each.name] + each.top, begins[each.name] + each.top + each.at.rows) for each in found)
    return None if sum(stop - start for start, stop in spans) == total else Slices(0, total, spans)


def _named_alike(component: str, part: nn.Module, checkpoint: Checkpoint) -> Layers | None:
    """Layers that their own part and the checkpoint's files call the same."""
    stored = {name: each.shape for name, each in stored_in(checkpoint.weights(component)).items()}
    known, dtypes = dict[str, tuple[Outputs, ...]](), dict[str, torch.dtype]()
    for name, layer in _linear(part):
        shape, path = tuple(layer.weight.shape), f"{component}.{name}"
        if stored.get(f"{name}.weight") == shape:
            known[name], dtypes[path] = (Outputs(path, 0, *shape),), layer.weight.dtype
    return Layers(known, dtypes) if known else None


class AdaptedPart(Adapted):
    """A layer of torch's that wears adapters; what else a network asks of it is asked of the layer."""

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("_modules", {})
        return getattr(own["base"], name) if "base" in own and name != "base" else super().__getattr__(name)


def dress(root: nn.Module, site: Site, rack: Rack) -> None:
    """Let the layer at `site` wear what is on the rack, within all that stands in its place."""
    layer, owner, key = root, root, ""
    for part in site[1].split("."):
        owner, key = _bare(layer), part
        layer = owner.get_submodule(part)
    while isinstance(layer, StandIn):
        owner, key = layer, "inner"
        layer = layer.get_submodule(key)
    if isinstance(layer, LinearBase):
        layer.peg = Peg(site, rack)
    elif not isinstance(layer, Adapted):
        setattr(owner, key, AdaptedPart(layer, site, rack))


def dress_all(wearing: Wardrobe, rack: Rack) -> None:
    """Let every layer wear what is on the rack from the start: compiled blocks would be compiled once more later."""
    for component, layers in wearing.sites.items():
        for path in layers.dtypes if isinstance(layers, Layers) else ():
            wearing.dress((component, path), rack)


def _bare(module: nn.Module) -> nn.Module:
    while isinstance(module, StandIn):
        module = module.get_submodule("inner")
    return module
