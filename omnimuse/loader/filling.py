"""The tensors of a module while they are filled: what files have to name, and the memory that is written for it.

Most are the module's own. The weights of a layer that packs them are one tensor to the files, several in the module.
Used by `weights`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from omnimuse.loader.tensors import Home, place_everywhere, settle, stored_tensors
from omnimuse.quant.linear import PackedRows, quantized_layers
from omnimuse.quant.stacked import Stacked, StackedRows


class Space(Protocol):
    """Memory that a tensor, or a part of it, is written to."""

    def narrow(self, dim: int, start: int, length: int) -> Space: ...

    def copy_(self, src: Tensor, /) -> object: ...


def slots(module: nn.Module) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """What files have to name: as `stored_tensors`, but that packed weights are one tensor, in the shape and format
    that they stand for.
    """
    stored, layers = stored_tensors(module), quantized_layers(module)
    packed = {f"{path}.{part}" for path, layer in layers.items() for part in layer.parts.values()}
    whole = {f"{path}.weight": (layer.like(), (f"{path}.weight",)) for path, layer in layers.items()}
    return {name: slot for name, slot in stored.items() if name not in packed} | whole


class Filling:
    """`slots`: what is to be filled in `module`."""

    def __init__(self, module: nn.Module, home: Home) -> None:
        self._module, self._home = module, home
        self._stored = stored_tensors(module)
        self._layers = {f"{path}.weight": (path, layer) for path, layer in quantized_layers(module).items()}
        self.slots = slots(module)
        self._spaces: dict[str, Space] = {}
        self._filled: dict[str, Tensor] = {}

    def space(self, name: str) -> Space:
        """Where the content of the slot called `name` is to be written."""
        if name not in self._spaces:
            self._spaces[name] = self._packed_rows(name) if name in self._layers else self._memory(name)
        return self._spaces[name]

    def finish(self) -> None:
        """Everything is written: the module has it."""
        if not self._home.waits:
            for name, tensor in self._filled.items():
                place_everywhere(self._module, self._stored[name][1], tensor)
        settle(self._module, self._home)

    def _memory(self, name: str) -> Tensor:
        self._filled[name] = self._home.space(name, self._stored[name][0])
        return self._filled[name]

    def _packed_rows(self, name: str) -> PackedRows | StackedRows:
        path, layer = self._layers[name]
        parts = {part: self._memory(f"{path}.{held}") for part, held in layer.parts.items()}
        if isinstance(layer.scheme, Stacked):
            return layer.scheme.rows(parts, layer.inputs)
        return PackedRows(layer.packing, parts, layer.inputs, layer.columns)
