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
from omnimuse.quant.packings import PACKINGS, Rows
from omnimuse.quant.schemes import Packing, Scheme

AT_ONCE = 2**16
"""Numbers that are packed at once: what that takes beside them is small, and so are the gaps that it leaves between
what stays.
"""


class QuantizedLinear(nn.Module):
    """`nn.Linear` with weights packed by `scheme`, multiplied in `arithmetic`; its outputs are in the format of inputs.

    `heights`: of tiles, if products are cut into some (`layers/steady.py`).
    """

    def __init__(self, linear: nn.Linear, scheme: Packing, arithmetic: torch.dtype) -> None:
        super().__init__()
        self.scheme, self.arithmetic = scheme, arithmetic
        self.stands_for = linear.weight.dtype
        self.heights: tuple[int, ...] = ()
        parts = scheme.empty(*linear.weight.shape)  # a rank that has none of the rows has none of these
        self.parts = tuple(parts)
        for name, part in parts.items():
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
        return torch.empty(self.scheme.outputs(self.packed), self.inputs, dtype=self.stands_for, device="meta")

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.scheme.outputs(self.packed)}, {self.scheme}"


class PackedRows:
    """Rows of a layer's weights: what is written here is packed into the `parts`."""

    def __init__(self, scheme: Packing, parts: Mapping[str, Tensor], inputs: int) -> None:
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

    def put(self, rows: Rows) -> None:
        """Rows that are packed: as they are where this layer has them so, otherwise by way of floats."""
        if PACKINGS[rows.packing] != self._scheme:
            self.copy_(rows.floats())
            return
        for name, part in rows.parts.items():
            self._parts[name].copy_(part)

    def copy_(self, weights: Tensor) -> None:
        """Pack `weights` [n, K], some rows at a time."""
        if not isinstance(self._scheme, Scheme):
            raise ModelError(f"weights cannot be packed as {self._scheme} here; only files hold such")
        some = max(1, AT_ONCE // max(self._inputs, 1))
        for start in range(0, len(weights), some):
            device = self._parts["weight"].device
            for name, rows in self._scheme.pack(weights[start : start + some].to(device, torch.float32)).items():
                self._parts[name][start : start + some].copy_(rows)


def packed_as(packing: str, weights: Tensor) -> Rows:
    """Weights [N, K], packed on the CPU as loading packs them: to the same bits."""
    scheme = PACKINGS[packing]
    parts = {name: torch.empty_like(each, device="cpu") for name, each in scheme.empty(*weights.shape).items()}
    PackedRows(scheme, parts, weights.shape[1]).copy_(weights)
    return Rows(packing, weights.shape[1], parts)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    """Every layer with packed weights in `module`, by its path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
