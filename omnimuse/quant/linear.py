"""A linear layer with packed weights, and where the loader writes the weights that it packs.

A build pass (`worker/quantize.py`) puts `QuantizedLinear` in the place of `nn.Linear`, before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.layers.steady import tiled
from omnimuse.quant.schemes import Scheme

AT_ONCE = 2**20
"""Numbers that are packed at once: what that takes beside them is small."""


class QuantizedLinear(nn.Module):
    """`nn.Linear` with weights packed by `scheme`, multiplied in `arithmetic`; its outputs are in the format of inputs.

    `heights`: of tiles, if products are cut into some (`layers/steady.py`).
    """

    def __init__(self, linear: nn.Linear, scheme: Scheme, arithmetic: torch.dtype) -> None:
        super().__init__()
        self.scheme, self.arithmetic = scheme, arithmetic
        self.stands_for = linear.weight.dtype
        self.heights: tuple[int, ...] = ()
        self.parts = tuple(scheme.empty(linear.out_features, linear.in_features))
        for name, part in scheme.empty(linear.out_features, linear.in_features).items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))
        self.inputs, self.bias = linear.in_features, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, self.inputs).to(self.arithmetic)
        out = self.scheme.multiply(tokens, self.packed, self._product)
        if self.bias is not None:
            out = out + self.bias
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return tiled(x, weight, None, self.heights) if self.heights else F.linear(x, weight)

    @property
    def packed(self) -> dict[str, Tensor]:
        """Every part by its name."""
        return {name: self.get_parameter(name) for name in self.parts}

    def like(self) -> Tensor:
        """A tensor on meta of the shape and format of the weights that are packed here."""
        return torch.empty(len(self.get_parameter("weight")), self.inputs, dtype=self.stands_for, device="meta")

    def extra_repr(self) -> str:
        return f"{self.inputs}, {len(self.get_parameter('weight'))}, {self.scheme}"


class PackedRows:
    """Rows of a layer's weights: what is written here is packed into the `parts`."""

    def __init__(self, scheme: Scheme, parts: Mapping[str, Tensor], inputs: int) -> None:
        self._scheme, self._parts, self._inputs = scheme, parts, inputs

    def narrow(self, dim: int, start: int, length: int) -> PackedRows:
        """The rows from `start` on; ModelError for a part of the columns, whose scale needs the others."""
        if dim != 0:
            raise ModelError(
                f"a part of the columns (of {self._inputs}, along dimension {dim}) cannot be packed without the rest; "
                "leave this layer out of what is quantized"
            )
        return PackedRows(
            self._scheme, {name: part.narrow(0, start, length) for name, part in self._parts.items()}, self._inputs
        )

    def copy_(self, weights: Tensor) -> None:
        """Pack `weights` [n, K], some rows at a time."""
        some = max(1, AT_ONCE // max(self._inputs, 1))
        for start in range(0, len(weights), some):
            device = self._parts["weight"].device
            for name, rows in self._scheme.pack(weights[start : start + some].to(device, torch.float32)).items():
                self._parts[name][start : start + some].copy_(rows)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    """Every layer with packed weights in `module`, by its path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
