"""Which linear layer of ours computes what a checkpoint, and so an adapter for it, knows by a name.

The rules that load a checkpoint say it: names are those in its files, and where several layers became one, each is some
of its outputs. A build makes one `Sites` per component.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from omnimuse.core.plans import Slices
from omnimuse.loader.differences import Shape
from omnimuse.loader.filling import slots
from omnimuse.loader.headers import stored_in
from omnimuse.loader.plan import plan_load
from omnimuse.loader.rules import Alias, Rule
from omnimuse.loader.weights import whole


@dataclass(frozen=True)
class Outputs:
    """Some outputs of the linear layer at `path`, from `start` to `stop`, of so many `inputs`."""

    path: str
    start: int
    stop: int
    inputs: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def halves(self) -> tuple[Outputs, ...]:
        """Its second half and its first, if they are a scale and a shift; else itself."""
        if self.count != 2 * self.inputs:
            return (self,)
        middle = self.start + self.inputs
        return replace(self, start=middle), replace(self, stop=middle)


@runtime_checkable
class Turned(Protocol):
    """A linear layer that has its weights as [inputs, outputs]: transformers' Conv1D, of so many outputs as `nf`."""

    nf: int


class Linears(Protocol):
    """The linear layers of one component, by the names that adapters have for them."""

    @property
    def known(self) -> Mapping[str, object]:
        """All of them, by the checkpoint's names."""
        ...

    def dtype(self, path: str) -> torch.dtype:
        """What the layer at `path` computes in."""
        ...

    def share(self, path: str) -> Slices | None:
        """What of its inputs (dimension 1) or outputs (0) is here; None for all of them."""
        ...

    def find(self, name: str, *, flat: bool) -> tuple[Outputs, ...]:
        """What the layer that an adapter calls `name` makes; `flat`: with underscores for dots."""
        ...


class Sites:
    """The linear layers of one component by the names that its checkpoint in `folder` has for them.

    `cuts` says of which tensors `module` has a share, `shares` of which layers it computes with one: some of the inputs
    or outputs. Files are looked at when an adapter first asks.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        rules: Callable[[], Sequence[Rule]],
        cuts: Mapping[str, Slices],
        aliases: Sequence[Alias],
        shares: Mapping[str, Slices] | None = None,
    ) -> None:
        stored = slots(module)
        self._shares = shares or {}
        self._folder = folder
        self._rules = rules
        self._aliases = aliases
        self._ties = {name: first for first, (_, names) in stored.items() for name in names}
        self._shapes: dict[str, Shape] = {
            name: whole(tuple(stored[first][0].shape), cuts.get(first)) for name, first in self._ties.items()
        }
        self._dtypes = {name: stored[first][0].dtype for name, first in self._ties.items()}
        parts = {f"{path}.weight": part for path, part in module.named_modules()}
        self._tables = {name for name, part in parts.items() if isinstance(part, nn.Embedding)}
        self._turned = {name for name, part in parts.items() if isinstance(part, Turned)}

    def dtype(self, path: str) -> torch.dtype:
        """What the layer at `path` computes in."""
        return self._dtypes[f"{path}.weight"]

    def share(self, path: str) -> Slices | None:
        """What of the inputs (dimension 1) or outputs (0) of the layer at `path` is here; None for all of them."""
        return self._shares.get(path)

    def find(self, name: str, *, flat: bool) -> tuple[Outputs, ...]:
        """What the layer that an adapter calls `name` makes, in the order of its outputs; nothing if there is none.

        `flat`: the name has underscores for dots.
        """
        found = self._flat.get(name) if flat else self.known.get(name)
        if found is not None:
            return (found,)
        for alias in self._aliases:
            if names := alias.of(name):
                outputs = tuple(self.known[each] for each in names if each in self.known)
                return tuple(half for each in outputs for half in each.halves()) if alias.turned else outputs
        return ()

    @cached_property
    def known(self) -> dict[str, Outputs]:
        """Every linear layer, by the checkpoint's name for it."""
        shapes = {name: each.shape for name, each in stored_in(self._folder).items()}
        pieces = plan_load(shapes, self._shapes, self._ties, self._rules()).pieces
        found: dict[str, Outputs] = {}
        for source, piece in pieces.items():
            shape = self._shapes[piece.target]
            linear = piece.target.endswith(".weight") and len(shape) == 2 and piece.target not in self._tables
            if not linear or not source.endswith(".weight") or piece.dim:
                continue
            outputs, inputs = reversed(shape) if piece.target in self._turned else shape
            start, stop = (0, outputs) if piece.start is None else (piece.start, piece.stop)
            found[source.removesuffix(".weight")] = Outputs(piece.target.removesuffix(".weight"), start, stop, inputs)
        return found

    @cached_property
    def _flat(self) -> dict[str, Outputs]:
        return {name.replace(".", "_"): outputs for name, outputs in self.known.items()}
