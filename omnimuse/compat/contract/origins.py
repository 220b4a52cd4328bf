"""Which numbers of which stored matrix lie where in the weights of a pipeline that puts them there itself.

While it loads, every copy and every joining of tensors is watched. So whatever `load_weights` calls things and however
it packs or shares them, it is known afterwards which layer has which rows of what a checkpoint has by a name. What is
computed from a stored tensor is not that tensor any more, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Name = tuple[str, str]
"""A component, and what its files call a tensor."""

Where = tuple[torch.device, int]
"""The memory of a tensor, however it is looked at."""


@dataclass(frozen=True)
class View:
    """A rectangle of a matrix in memory that is `width` wide: where it begins there, and how large it is."""

    row: int
    column: int
    rows: int
    columns: int
    width: int


@dataclass(frozen=True)
class Piece:
    """At `at` lies what the stored matrix `name`, of that `shape`, has from (`top`, `left`) on."""

    at: View
    name: Name
    shape: tuple[int, int]
    top: int = 0
    left: int = 0


class Origins(TorchDispatchMode):
    """Watches, for the length of a `with` block, where stored tensors go."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[Where, list[Piece]] = {}
        self._watched: dict[Any, Callable[[Tensor, tuple[Any, ...]], None]] = {
            torch.ops.aten.copy_: lambda made, args: self._put(made, [(args[1], 0, 0)], fresh=False),
            torch.ops.aten._to_copy: lambda made, args: self._put(made, [(args[0], 0, 0)], fresh=True),
            torch.ops.aten.clone: lambda made, args: self._put(made, [(args[0], 0, 0)], fresh=True),
            torch.ops.aten.cat: self._joined,
        }

    def stored(self, name: Name, tensor: Tensor) -> Tensor:
        """`tensor` was just read, and is called so. A kernel over single cells counts as a matrix."""
        flat = tensor.flatten(1) if tensor.ndim > 1 and tensor.is_contiguous() else tensor
        if (view := view_of(flat)) is not None:
            self._held[_where(tensor)] = [Piece(view, name, (view.rows, view.columns))]
        return tensor

    def of(self, tensor: Tensor) -> list[Piece]:
        """What `tensor` is made of, counted from its own first row and column, from the top down."""
        view = view_of(tensor)
        found = [] if view is None else self._within(_where(tensor), view)
        return sorted(found, key=lambda piece: (piece.at.row, piece.at.column))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if (watch := self._watched.get(func.overloadpacket)) is not None:
            watch(made, args)
            return made
        given = set() if func._schema.is_mutable else {_where(each) for each in args if isinstance(each, Tensor)}
        for each in made if isinstance(made, list | tuple) else [made]:
            if isinstance(each, Tensor) and _where(each) not in given:
                self._held.pop(_where(each), None)
        return made

    def _within(self, where: Where, view: View) -> list[Piece]:
        """What lies inside of `view` there, counted from its corner."""
        found = []
        for piece in self._held.get(where, ()):
            at = piece.at
            if at.width != view.width:
                continue
            top, bottom = max(at.row, view.row), min(at.row + at.rows, view.row + view.rows)
            left, right = max(at.column, view.column), min(at.column + at.columns, view.column + view.columns)
            if top < bottom and left < right:
                place = View(top - view.row, left - view.column, bottom - top, right - left, view.width)
                moved = (piece.top + top - at.row, piece.left + left - at.column)
                found.append(replace(piece, at=place, top=moved[0], left=moved[1]))
        return found

    def _put(self, target: Tensor, parts: Sequence[tuple[Tensor, int, int]], *, fresh: bool) -> None:
        """`target` was filled with `parts`, each at its row and column; nothing else is in it if it is `fresh`."""
        where, whole = _where(target), view_of(target)
        kept = [] if fresh else [each for each in self._held.get(where, ()) if not _meet(each.at, whole)]
        if whole is not None:
            for part, row, column in parts:
                for piece in self.of(part):
                    at = piece.at
                    top, left = whole.row + row + at.row, whole.column + column + at.column
                    kept.append(replace(piece, at=View(top, left, at.rows, at.columns, whole.width)))
        self._held.pop(where, None)
        if kept:
            self._held[where] = kept

    def _joined(self, made: Tensor, args: tuple[Any, ...]) -> None:
        dim, place, parts = args[1] if len(args) > 1 else 0, 0, []
        for part in args[0]:
            parts.append((part, 0, place) if dim in (1, -1) else (part, place, 0))
            place += part.shape[dim]
        self._put(made, parts, fresh=True)


def view_of(tensor: Tensor) -> View | None:
    """How `tensor` lies in memory; None for what is no matrix whose rows lie there in order."""
    if tensor.ndim != 2 or tensor.is_meta or not tensor.numel() or (tensor.shape[1] > 1 and tensor.stride(1) != 1):
        return None
    width = tensor.stride(0)
    if width < tensor.shape[1]:
        return None
    row, column = divmod(int(tensor.storage_offset()), width)
    rows, columns = tensor.shape
    return View(row, column, rows, columns, width) if column + columns <= width else None


def _where(tensor: Tensor) -> Where:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _meet(one: View, other: View | None) -> bool:
    """Whether two rectangles of one memory have numbers in common, as far as that can be told."""
    if other is None or one.width != other.width:
        return True
    rows = one.row < other.row + other.rows and other.row < one.row + one.rows
    return rows and one.column < other.column + other.columns and other.column < one.column + one.columns
