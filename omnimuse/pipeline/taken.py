"""How many bytes of memory something takes that holds tensors somewhere."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from omnimuse.ar.kv import KV
from omnimuse.pipeline.state import CPU, Parked


def taken(*things: Any) -> int:
    """The bytes on the CPU of all tensors inside, also in what their owners keep to themselves; what two share counts
    once, and weights do not.
    """
    sizes: dict[int, int] = {}
    seen: dict[int, Any] = {}
    todo = list(things)
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Parked):
            todo.append(thing.tensor)
        elif isinstance(thing, KV):
            if thing.device == CPU:
                sizes[id(thing.place or thing)] = thing.data.nbytes
        elif isinstance(thing, Tensor):
            if thing.device == CPU:
                memory = thing.untyped_storage()
                sizes[memory.data_ptr()] = memory.nbytes()
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, list | tuple | set | frozenset):
            todo += thing
        elif not isinstance(thing, nn.Module | type):
            with suppress(TypeError):  # it has no fields
                todo += vars(thing).values()
    return sum(sizes.values())
