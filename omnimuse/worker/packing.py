"""Values that travel between pools: plain data, tensors, and the few records of ours that slots, notes and events hold.

A tree of plain values, beside it the tensors, which travel as they lie in memory. What a decoder remembers is such a
tensor, too, and lies alone where it arrives, as after a pause. Nothing here runs code that came with a message: what is
not in `RECORDS` is refused on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.errors import EngineDeadError, ModelError
from omnimuse.core.output import Chunk, PicturesShown, Preview, Progress, TextRead, TextWritten
from omnimuse.core.plans import Grouped
from omnimuse.core.sources import Recording
from omnimuse.pipeline.stream import Stream

ALIGN = 64
"""Bytes; every tensor begins at a multiple of it, as torch's own do: kernels may choose another way elsewhere."""


def name_of(dtype: torch.dtype) -> str:
    """What torch calls it."""
    return str(dtype).removeprefix("torch.")


PLAIN = (bool, int, float, str, bytes)
RECORDS: Mapping[str, type[Any]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (Chunk, PicturesShown, Preview, Progress, Recording, Stream, TextRead, TextWritten)
    }
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        name_of(dtype): dtype
        for dtype in (
            *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        )
    }
)


class Laid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a tensor lies in the bytes: from where on, its shape, which of its dimensions is the outermost, and so on.

    One that is not `host` lay on the device of its pool.
    """

    at: int
    dtype: str
    shape: list[int]
    order: list[int]
    host: bool


class Packed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value without the bytes of its tensors."""

    tree: Any
    tensors: list[Laid]


class Packer:
    """Collects the tensors of a value; `size` are the bytes that they take together.

    `records` are what a pipeline's slots hold besides (`Pipeline.records`).
    """

    def __init__(self, records: Iterable[type[Any]] = ()) -> None:
        self.size = 0
        self._records = known(records)
        self._laid: list[Laid] = []
        self._tensors: list[Tensor] = []

    def pack(self, value: Any) -> bytes:
        """`value` without its tensors; ModelError for what cannot travel."""
        return msgspec.msgpack.encode(Packed(self._tree(value), self._laid))

    def write(self, into: memoryview) -> None:
        """The bytes of the tensors, into as many."""
        for laid, tensor in zip(self._laid, self._tensors, strict=True):
            if tensor.numel():
                data = tensor.reshape(-1).view(torch.uint8).numpy()
                into[laid.at : laid.at + tensor.nbytes] = data.data

    def _tree(self, value: Any) -> Any:
        if value is None or isinstance(value, PLAIN):
            return value
        if isinstance(value, Tensor):
            return ["t", self._lay(value)]
        if isinstance(value, KV):
            return ["k", self._lay(value.data), value.whole.queries]
        if isinstance(value, np.ndarray):
            return ["n", self._lay(torch.from_numpy(np.ascontiguousarray(value)))]
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return ["l" if isinstance(value, list) else "u", [self._tree(part) for part in value]]
        if isinstance(value, Mapping):
            return ["d", [[self._tree(key), self._tree(part)] for key, part in value.items()]]
        if self._records.get(name := type(value).__name__) is type(value):
            return ["r", name, {each.name: self._tree(getattr(value, each.name)) for each in fields(value)}]
        raise ModelError(f"a slot that holds {name} cannot go to another pool; hold tensors, numbers, texts or lists")

    def _lay(self, tensor: Tensor) -> int:
        host, tensor = tensor.device.type == "cpu", tensor.detach().cpu()
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], axis))
        if not tensor.permute(order).is_contiguous():
            order, tensor = list(range(tensor.ndim)), tensor.contiguous()
        name = name_of(tensor.dtype)
        if name not in DTYPES:
            raise ModelError(f"a tensor of {name} cannot go to another pool; use one of {', '.join(DTYPES)}")
        self._laid.append(Laid(self.size, name, list(tensor.shape), order, host))
        self._tensors.append(tensor.permute(order))
        self.size += -(-tensor.nbytes // ALIGN) * ALIGN
        return len(self._laid) - 1


def known(records: Iterable[type[Any]]) -> dict[str, type[Any]]:
    """Every record that may travel, by name."""
    return {**RECORDS, **{kind.__name__: kind for kind in records}}


def unpack(head: bytes, data: memoryview, device: torch.device, records: Iterable[type[Any]] = ()) -> Any:
    """What `Packer` was given; its tensors share the memory of `data`, which may be written to.

    EngineDeadError for what makes no sense.
    """
    try:
        packed = msgspec.msgpack.decode(head, type=Packed)
        tensors = [_tensor(laid, data, device) for laid in packed.tensors]
        return _value(packed.tree, tensors.__getitem__, known(records))
    except (msgspec.MsgspecError, ValueError, TypeError, LookupError, RuntimeError) as error:
        raise EngineDeadError(f"what came from another pool makes no sense: {error}; start the engine again") from None


def _tensor(laid: Laid, data: memoryview, device: torch.device) -> Tensor:
    dtype = DTYPES[laid.dtype]
    sizes = [laid.shape[axis] for axis in laid.order]
    count = torch.Size(sizes).numel()
    if count:
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=laid.at)
    else:
        flat = torch.empty(0, dtype=dtype)
    back = sorted(range(len(laid.order)), key=laid.order.__getitem__)
    tensor = flat.view(sizes).permute(back)
    return tensor if laid.host or device.type == "cpu" else tensor.to(device)


def _value(tree: Any, tensor: Callable[[int], Tensor], records: Mapping[str, type[Any]]) -> Any:
    if not isinstance(tree, list):
        return tree
    match tree:
        case ["t", int(number)]:
            return tensor(number)
        case ["k", int(number), int(queries)]:
            data = tensor(number)
            return KV(Slabs(), None, Grouped(queries, data.shape[2]), data.unsqueeze(2))
        case ["n", int(number)]:
            return tensor(number).cpu().numpy()
        case ["l", list(parts)]:
            return [_value(part, tensor, records) for part in parts]
        case ["u", list(parts)]:
            return tuple(_value(part, tensor, records) for part in parts)
        case ["d", list(pairs)]:
            return {_value(key, tensor, records): _value(part, tensor, records) for key, part in pairs}
        case ["r", str(name), dict(told)]:
            return records[name](**{key: _value(part, tensor, records) for key, part in told.items()})
    raise ValueError(f"{str(tree)[:40]!r} is no value")
