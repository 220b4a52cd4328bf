"""Stages whose networks one rank alone has: it runs them, and tells the others what they write.

`Pipeline` and the runner run every one-shot stage by `run`. Which networks are where, a build pass decides
(`worker/ranks.py`); a stage says of itself that it can be (`Stage.lendable`). A failure is told, too, so that all ranks
fail alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import msgspec
import torch
from torch import Tensor

from omnimuse.core.errors import ModelError, OmnimuseError, RequestError
from omnimuse.core.output import Note, PicturesShown, TextRead, TextWritten
from omnimuse.parallel.collectives import told, told_tensor
from omnimuse.parallel.shortage import is_shortage
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

NOTES: Mapping[str, type[TextRead] | type[PicturesShown] | type[TextWritten]] = MappingProxyType(
    {"TextRead": TextRead, "PicturesShown": PicturesShown, "TextWritten": TextWritten}
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        str(dtype): dtype
        for dtype in (
            *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
            *(torch.int64, torch.int32, torch.bool),
        )
    }
)

Tree = None | int | list[Any]
"""A slot's value: nothing, the number of a tensor, or several of these."""


class Failure(msgspec.Struct, frozen=True):
    """What the stage failed with."""

    message: str
    param: str | None = None
    asked: bool = False
    """Whether it is the request's own fault."""
    short: bool = False
    """Whether memory ran out."""


class Told(msgspec.Struct, frozen=True):
    """What the stage wrote: its slots as trees, and the dtype and shape of every tensor in them."""

    slots: list[Tree] = []
    tensors: list[tuple[str, list[int]]] = []
    note: tuple[str, dict[str, Any]] | None = None
    failure: Failure | None = None


def owner_of(stage: Stage, ctx: Context) -> int | None:
    """The rank that alone has what `stage` uses; None where every rank runs it."""
    return next((ctx.lent[name] for name in stage.uses if name in ctx.lent), None)


def run(stage: Stage, ctx: Context, state: State) -> None:
    """Run `stage` for one state, here or where its networks are. What it raises is raised on every rank."""
    owner = owner_of(stage, ctx)
    if owner is None:
        stage.run(ctx, [state])
    elif owner == ctx.mesh.rank:
        _tell(stage, ctx, state, owner)
    else:
        _hear(stage, ctx, state, owner)


def _tell(stage: Stage, ctx: Context, state: State, owner: int) -> None:
    tensors: list[Tensor] = []
    try:
        stage.run(ctx, [state])
        slots = [_packed(state[slot], tensors) for slot in stage.writes]
    except Exception as error:  # the worker loop: the others wait for what became of it
        told(ctx.mesh, owner, msgspec.msgpack.encode(Told(failure=_failure(error))))
        raise
    shapes = [(str(tensor.dtype), list(tensor.shape)) for tensor in tensors]
    note = state.notes.get(stage.name)
    spoken = None if note is None else (type(note).__name__, asdict(note))
    told(ctx.mesh, owner, msgspec.msgpack.encode(Told(slots, shapes, spoken)))
    if tensors:
        told_tensor(ctx.mesh, owner, torch.cat([_bytes(tensor) for tensor in tensors]))


def _hear(stage: Stage, ctx: Context, state: State, owner: int) -> None:
    found = msgspec.msgpack.decode(told(ctx.mesh, owner, None), type=Told)
    if found.failure is not None:
        raise _raised(found.failure)
    shapes = [(DTYPES[dtype], tuple(shape)) for dtype, shape in found.tensors]
    sizes = [torch.Size(shape).numel() * dtype.itemsize for dtype, shape in shapes]
    tensors: list[Tensor] = []
    if sizes:
        body = told_tensor(ctx.mesh, owner, torch.empty(sum(sizes), dtype=torch.uint8, device=ctx.device))
        pieces = zip(body.split(sizes), shapes, strict=True)
        # A copy starts at offset 0, as a view of wider numbers must.
        tensors = [piece.clone().view(dtype).reshape(shape) for piece, (dtype, shape) in pieces]
    for slot, tree in zip(stage.writes, found.slots, strict=True):
        state[slot] = _unpacked(tree, tensors)
    if found.note is not None:
        kind, fields = found.note
        note: Note = NOTES[kind](**fields)
        state.notes[stage.name] = note


def _packed(value: Any, tensors: list[Tensor]) -> Tree:
    """`value` without its tensors, which are added to `tensors`."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        tensors.append(value)
        return len(tensors) - 1
    if isinstance(value, tuple):
        return [_packed(part, tensors) for part in value]
    raise ModelError(f"a slot that is {type(value).__name__} cannot be told to other ranks; allowed are tensors")


def _unpacked(tree: Tree, tensors: list[Tensor]) -> Any:
    if isinstance(tree, list):
        return tuple(_unpacked(part, tensors) for part in tree)
    return None if tree is None else tensors[tree]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _failure(error: Exception) -> Failure:
    if isinstance(error, RequestError):
        return Failure(str(error), error.param, asked=True)
    said = str(error) if isinstance(error, OmnimuseError) else f"{type(error).__name__}: {error}"
    return Failure(said, short=is_shortage(error))


def _raised(failure: Failure) -> Exception:
    if failure.short:
        return MemoryError(failure.message)
    return RequestError(failure.message, failure.param) if failure.asked else ModelError(failure.message)
