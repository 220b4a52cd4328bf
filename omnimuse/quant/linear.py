"""A linear layer with packed weights, and where the loader writes the weights that it packs.

A build pass (`worker/quantize.py`) puts `QuantizedLinear` in the place of `nn.Linear`, before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Slices
from omnimuse.layers.steady import Weighing, tiled
from omnimuse.quant.packings import PACKINGS, Rows
from omnimuse.quant.schemes import READ_IN, Divisible, Largest, Packing, Parts, Scheme, own, reading

AT_ONCE = 2**16
"""Numbers that are packed at once: what that takes beside them is small, and so are the gaps that it leaves between
what stays.
"""


HELD = "weight_packed"
"""What a layer calls the part of its packing that is called `weight`, by which libraries ask what format it computes
in: T5 of transformers makes its inputs of that, which would be codes.
"""


class QuantizedLinear(nn.Module):
    """`nn.Linear` with weights packed by `scheme`, multiplied in `arithmetic`; its outputs are in the format of inputs.

    `heights`: of tiles, if products are cut into some (`layers/steady.py`). One that `rounds` makes tokens that are
    written bfloat16, if its packing is read once for such (`worker/abreast.py`). Where a rank has some inputs only,
    these are the `columns` of rows that are packed whole, by `packing`, so that they stand for the floats of one rank;
    `largest` asks the others what is largest of a token.
    """

    def __init__(
        self,
        linear: Weighing,
        scheme: Packing,
        arithmetic: torch.dtype,
        columns: Slices | None = None,
        largest: Largest = own,
    ) -> None:
        super().__init__()
        self.packing, self.arithmetic, self.columns = scheme, arithmetic, columns
        if columns is not None:
            assert isinstance(scheme, Divisible), "only such let columns be taken out of rows"
            scheme = scheme.some(columns, largest)
        self.scheme = scheme
        self.stands_for = linear.weight.dtype
        self.heights: tuple[int, ...] = ()
        self.rounds = False
        self.parts: dict[str, str] = {}
        parts = scheme.empty(*linear.weight.shape)  # a rank that has none of the rows has none of these
        self.hold(parts)
        self.inputs, self.bias = linear.weight.shape[1], linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.made(x, self.bias)

    def made(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product, and `bias` added to it."""
        tokens = x.reshape(-1, self.inputs)
        any_number = bool(self.heights)  # where company must not matter, it is for all
        once = reading(x, self.scheme, rounds=self.rounds, any_number=any_number)
        if once is not None:
            out = once.few_product(tokens.to(READ_IN), self.packed)
        else:
            out = self.scheme.multiply(tokens.to(self.arithmetic), self.packed, self._product)
        if bias is not None:
            out = out + bias
        return out.to(x.dtype).view(*x.shape[:-1], out.shape[-1])

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return tiled(x, weight, None, self.heights) if self.heights else F.linear(x, weight)

    @property
    def packed(self) -> dict[str, Tensor]:
        """Every part, by the name that its packing has for it."""
        return {part: self.get_parameter(name) for part, name in self.parts.items()}

    def hold(self, parts: Parts) -> None:
        """These parts of a packing, in the place of those that are here."""
        for name in self.parts.values():
            delattr(self, name)
        self.parts = {part: HELD if part == "weight" else part for part in parts}
        for part, name in self.parts.items():
            self.register_parameter(name, nn.Parameter(parts[part], requires_grad=False))

    @property
    def weight(self) -> Tensor:
        """What libraries ask for the shape and the format of the weights: there are no numbers in it."""
        return self.like()

    def like(self) -> Tensor:
        """A tensor on meta of the shape and format of the weights that are packed here."""
        return torch.empty(self.scheme.outputs(self.packed), self.inputs, dtype=self.stands_for, device="meta")

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.scheme.outputs(self.packed)}, {self.scheme}"


class PackedRows:
    """Rows of a layer's weights: what is written here, whole rows, is packed into the `parts`, or its `columns` are."""

    def __init__(
        self, scheme: Packing, parts: Mapping[str, Tensor], inputs: int, columns: Slices | None = None
    ) -> None:
        self._scheme, self._parts, self._inputs, self.columns = scheme, parts, inputs, columns

    def narrow(self, dim: int, start: int, length: int) -> PackedRows:
        """The rows from `start` on; ModelError for a part of the columns, whose scale needs the others."""
        if dim != 0:
            raise ModelError(
                f"a part of the columns (of {self._inputs}, along dimension {dim}) cannot be packed without the rest; "
                "leave this layer out of what is quantized"
            )
        parts = {name: part.narrow(0, start, length) for name, part in self._parts.items()}
        return PackedRows(self._scheme, parts, self._inputs, self.columns)

    def put(self, rows: Rows) -> None:
        """Rows that are packed: as they are where this layer has them so, otherwise by way of floats."""
        if PACKINGS[rows.packing] != self._scheme:
            self.copy_(rows.floats())
            return
        for name, part in self._held(rows.parts).items():
            self._parts[name].copy_(part)

    def copy_(self, weights: Tensor) -> None:
        """Pack `weights` [n, K], some rows at a time."""
        if not isinstance(self._scheme, Scheme):
            raise ModelError(f"weights cannot be packed as {self._scheme} here; only files hold such")
        some = max(1, AT_ONCE // max(weights.shape[1], 1))
        for start in range(0, len(weights), some):
            device = self._parts["weight"].device
            packed = self._scheme.pack(weights[start : start + some].to(device, torch.float32))
            for name, rows in self._held(packed).items():
                self._parts[name][start : start + some].copy_(rows)

    def _held(self, parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is here of the parts of whole rows."""
        if self.columns is None:
            return parts
        assert isinstance(self._scheme, Divisible)
        return self._scheme.part(parts, self.columns)


def packed_as(packing: str, weights: Tensor) -> Rows:
    """Weights [N, K], packed on the CPU as loading packs them: to the same bits."""
    scheme = PACKINGS[packing]
    parts = {name: torch.empty_like(each, device="cpu") for name, each in scheme.empty(*weights.shape).items()}
    PackedRows(scheme, parts, weights.shape[1]).copy_(weights)
    return Rows(packing, weights.shape[1], parts)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    """Every layer with packed weights in `module`, by its path."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
