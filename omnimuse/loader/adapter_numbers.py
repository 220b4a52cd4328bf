"""The numbers in files of adapters as the layers wear them: in their formats, each output's rows, a process's own part.

Of a file whose names and shapes `adapters.py` has compared; the same without numbers tells what it is going to take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from omnimuse.loader.adapter_file import refusal
from omnimuse.loader.adapter_names import Role
from omnimuse.loader.differences import listed
from omnimuse.loader.sites import Linears, Outputs
from omnimuse.loader.weights import refuse_no_numbers
from omnimuse.lora.adapter import Product

log = logging.getLogger(__name__)

BIASES: tuple[Role, ...] = ("bias", "shift")

Tensors = Mapping[Role, Tensor]
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Bound:
    """A layer of a file with where it belongs: tensors by role, what it is called in the file, its outputs in ours."""

    tensors: Mapping[Role, str]
    component: str
    outputs: tuple[Outputs, ...]

    @property
    def count(self) -> int:
        """How many outputs."""
        return sum(each.count for each in self.outputs)

    @property
    def shifts(self) -> bool:
        """Whether there is nothing of it but a difference of the bias."""
        return self.tensors.keys() == {"shift"}


def once(source: str, bound: Mapping[str, Bound]) -> dict[str, Bound]:
    """What is `bound`, every output of a layer by one name of the file: a name of what others name part by part, as
    some trainers write it beside those, is left out, and of two for the same one with dots stays, then the longer.

    RequestError where two overlap otherwise.
    """
    kept = dict[str, Bound]()
    taken = dict[tuple[str, str, bool], list[tuple[int, int, str]]]()  # of what a layer multiplies by, and of its bias
    for name in sorted(bound, key=lambda name: (bound[name].count, "." not in name, -len(name))):
        each = bound[name]
        places = [(taken.setdefault((each.component, out.path, each.shifts), []), out) for out in each.outputs]
        shared = [
            (min(stop, out.stop) - max(start, out.start), other)
            for spans, out in places
            for start, stop, other in spans
            if start < out.stop and out.start < stop
        ]
        others = listed(sorted({other for _, other in shared}))
        if shared and sum(count for count, _ in shared) < each.count:
            raise refusal(source, f"has {name} and {others} for the same outputs; get it again")
        if shared:
            log.warning("adapter %s: %s is left out, as the file has that by %s, too", source, name, others)
            continue
        for spans, out in places:
            spans.append((out.start, out.stop, name))
        kept[name] = each
    return {name: kept[name] for name in bound if name in kept}


class Numbers(Protocol):
    """Where the numbers of a file come from, and where they go."""

    def of(self, bound: Bound) -> Tensors:
        """The tensors of a layer, in float32."""
        ...

    def place(self, layer: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of it in the format of the layer."""
        ...


class Shapes(NamedTuple):
    """None at all: tensors on meta, of these `shapes`."""

    shapes: Mapping[str, tuple[int, ...]]

    def of(self, bound: Bound) -> Tensors:
        """Tensors without numbers."""
        return {role: torch.empty(self.shapes[name], device="meta") for role, name in bound.tensors.items()}

    def place(self, layer: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Another one."""
        return tensor.to(dtype, copy=True)


class Stored(NamedTuple):
    """Those of the open `file`, for a device. RequestError for what is no number, or none in the format of a layer."""

    source: str
    file: Path
    handle: Any
    device: torch.device

    def of(self, bound: Bound) -> Tensors:
        """Those of a layer, looked at."""
        tensors = {role: self.handle.get_tensor(name).float() for role, name in bound.tensors.items()}
        for role, name in bound.tensors.items():
            refuse_no_numbers(self.file, name, tensors[role])
        return tensors

    def place(self, layer: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """On the device. Its numbers are looked at before, and a GPU takes them over while the host goes on. A copy:
        a part of the file that is mapped would keep the whole of it.
        """
        mine = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        _check_room(self.source, layer, mine)
        if self.device.type == "cuda":
            mine = mine.pin_memory()
        return mine.to(self.device, non_blocking=True)


def products_of(
    layer: str, bound: Bound, sites: Linears, factor: Callable[[int, float | None], float], numbers: Numbers
) -> Iterator[tuple[str, Product]]:
    """What `layer` is for the layers that this process has, by their paths. (rank, alpha) -> the `factor` of a product.

    Outputs that are the same but for their rows have one lower matrix.
    """
    up, down, bias = _halves(bound, numbers.of(bound), factor)
    placed = dict[tuple[torch.dtype, Spans], Tensor]()
    start = 0
    for outputs in bound.outputs:
        rows = slice(start, start + outputs.count)
        start += outputs.count
        dtype, share = sites.dtype(outputs.path), sites.share(outputs.path)
        if share is not None and not share.spans:
            continue  # another process has that layer
        inputs: Spans = share.spans if share is not None and share.dim == 1 else ((0, outputs.inputs),)
        if share is None or share.dim == 1:
            parts = [((0, outputs.count), outputs.start)]
        else:
            parts = list(share.meet(outputs.start, outputs.stop))
        mine, own = up[rows], None if bias is None else bias[rows]
        if down is None:
            mine = _columns(mine, inputs)
        elif (dtype, inputs) not in placed:
            placed[dtype, inputs] = numbers.place(layer, _columns(down, inputs), dtype)
        for (first, last), there in parts:
            yield (
                outputs.path,
                Product(
                    down=placed.get((dtype, inputs)),
                    up=numbers.place(layer, mine[first:last], dtype),
                    start=there,
                    bias=None if own is None else numbers.place(layer, own[first:last], dtype),
                ),
            )


def _halves(
    bound: Bound, tensors: Tensors, factor: Callable[[int, float | None], float]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The upper matrix, the lower one where it is no whole difference, and the bias."""
    up, down, times = tensors.get("whole"), tensors.get("down"), 1.0
    if down is not None:
        alpha = tensors.get("alpha")
        if not down.is_meta:
            times = factor(len(down), None if alpha is None else float(alpha))
        up = tensors["up"] * times
    elif up is None:  # a bias alone: beside it there is a product of nothing
        like = tensors["shift"]
        down, up = like.new_zeros(1, bound.outputs[0].inputs), like.new_zeros(len(like), 1)
    biases = [tensors[role] * (times if role == "bias" else 1.0) for role in BIASES if role in tensors]
    return up, down, reduce(torch.add, biases) if biases else None


def _columns(tensor: Tensor, spans: Spans) -> Tensor:
    return torch.cat([tensor[:, first:last] for first, last in spans], 1)


def _check_room(source: str, layer: str, tensor: Tensor) -> None:
    """RequestError where numbers that were some in the file are none in the format that the layer computes in."""
    if not tensor.isfinite().all():
        kind = str(tensor.dtype).removeprefix("torch.")
        wider = "another --dtype, or an adapter" if kind == "float16" else "an adapter"
        raise refusal(
            source,
            f"has numbers for {layer} that {kind} has no room for (over {torch.finfo(tensor.dtype).max:.2g}, with "
            f"its alpha); use {wider} whose training has not failed",
        )
