"""Streams safetensors into a network that was built empty, or fills it with random numbers (`--load dummy`).

Called by the worker's build and by `components`. Names and shapes are compared before the first tensor is read (but
for what is left over, see `copies`); then every tensor is read once, cast, and written to its place on the device.
Never opens a pickle, never guesses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Slices
from omnimuse.loader.copies import set_copies_aside
from omnimuse.loader.differences import Shape, refuse_differences
from omnimuse.loader.files import AGAIN
from omnimuse.loader.filling import Filling, Space
from omnimuse.loader.headers import Stored, opened, stored_in
from omnimuse.loader.plan import Piece, Plan, plan_load
from omnimuse.loader.rules import Rule
from omnimuse.loader.sources import Source, put
from omnimuse.loader.tensors import DtypePolicy, Home, cast, home_of
from omnimuse.quant.linear import PackedRows
from omnimuse.quant.packings import Rows
from omnimuse.quant.schemes import held

__all__ = ["DtypePolicy", "LoadReport", "load_weights", "randomise"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KINDS = {
    **dict(zip(("F64", "F32", "F16", "BF16"), FLOATS, strict=True)),
    **{f"I{8 * dtype.itemsize}": dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)},
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What safetensors calls the number formats that networks are stored in."""


@dataclass(frozen=True)
class LoadReport:
    """What was read: tensors and bytes in the files, and which files."""

    tensors: int
    bytes: int
    files: tuple[Path, ...]


def load_weights(
    module: nn.Module,
    folder: Path,
    rules: Sequence[Rule],
    dtype: DtypePolicy,
    place: Home | torch.device | str,
    cuts: Mapping[str, Slices] = MappingProxyType({}),
) -> LoadReport:
    """Fills `module` (see `tensors.construct`) with the safetensors in `folder`, renamed and fused by `rules`.

    Parameters and persistent buffers go to the home `place` (or stay on that device) in the dtype that the policy gives
    their name, without gradient, in eval mode. Beside what is filled this takes memory for one tensor. ModelError lists
    names that are missing, unexpected or of another shape, files that are damaged, and numbers that are none. Of the
    tensors in `cuts` the module has a share, and no more is read.
    """
    home = home_of(place)
    cast(module, dtype)
    filling = Filling(module, home)
    stored, plan, ties = matched(folder, filling.slots, rules, cuts)
    size = 0
    for path in dict.fromkeys(each.path for each in stored.values()):
        with opened(path) as handle:
            for source in (name for name, each in stored.items() if each.path == path and name in plan.pieces):
                piece, name = plan.pieces[source], ties[plan.pieces[source].target]
                space = filling.space(name)
                for into, content in _read(Source(handle, source, stored[source]), space, piece, cuts.get(name)):
                    refuse_no_numbers(path, source, content)
                    put(content, into)
                    size += content.nbytes
    filling.finish()
    return LoadReport(len(plan.pieces), size, tuple(dict.fromkeys(each.path for each in stored.values())))


def matched(
    folder: Path,
    slots: Mapping[str, tuple[Tensor, tuple[str, ...]]],
    rules: Sequence[Rule],
    cuts: Mapping[str, Slices] = MappingProxyType({}),
) -> tuple[dict[str, Stored], Plan, dict[str, str]]:
    """What the files in `folder` hold, where it goes among `slots`, and the first name of everything that has several.

    ModelError lists everything that does not fit.
    """
    stored = stored_in(folder)
    ties = {name: first for first, (_, names) in slots.items() for name in names}
    wanted = {name: whole(tuple(slots[first][0].shape), cuts.get(first)) for name, first in ties.items()}
    plan = plan_load({name: each.shape for name, each in stored.items()}, wanted, ties, rules)
    formats = {name: slots[ties[piece.target]][0].dtype for name, piece in plan.pieces.items()}
    mistyped = _mistyped(formats, stored)
    if not mistyped:
        set_copies_aside(folder, plan, stored)
    refuse_differences(folder, replace(plan.differences, mistyped=mistyped))
    return stored, plan, ties


def _read(source: Source, into: Space, piece: Piece, cut: Slices | None) -> Iterator[tuple[Space, Tensor | Rows]]:
    """What of the tensor `source` belongs into `into`: places there, and their content."""
    along = piece.start is not None and cut is not None and piece.dim == cut.dim
    if piece.start is not None and not along:
        into = into.narrow(piece.dim, piece.start, piece.stop - piece.start)
    if cut is None or (by_rows(into) and cut.spans):
        yield into, source.whole()
        return
    first = piece.start if along and piece.start is not None else 0
    for (start, stop), place in cut.meet(first, first + source.stored.shape[cut.dim]):
        yield into.narrow(cut.dim, place, stop - start), source.part(cut.dim, start, stop)


def by_rows(space: Space) -> bool:
    """Whether whole rows are written there, of which it keeps some columns."""
    return isinstance(space, PackedRows) and space.columns is not None


def whole(shape: Shape, cut: Slices | None) -> Shape:
    """The shape of the tensor of which one of `shape` is a share."""
    return shape if cut is None else (*shape[: cut.dim], cut.whole, *shape[cut.dim + 1 :])


def _mistyped(formats: Mapping[str, torch.dtype], stored: Mapping[str, Stored]) -> tuple[tuple[str, str, str], ...]:
    """(name, format asked for, format in the file) of those that would have to be guessed: floats are only made of
    floats of at least 16 bits, and other numbers of their own kind.
    """
    found = []
    for name, dtype in formats.items():
        have = KINDS.get(stored[name].kind)
        fits = have in FLOATS or bool(stored[name].parts) if dtype.is_floating_point else have == dtype
        if not fits:
            wanted = "floats of 16 to 64 bits" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
            found.append((name, wanted, stored[name].kind))
    return tuple(found)


def refuse_no_numbers(
    path: Path, name: str, content: Tensor | Rows, *, again: str = f"{AGAIN}, or use another revision of it"
) -> None:
    """ModelError for NaN and infinity, of packed rows in what others are multiplied by. Their sum tells in a fraction
    of the time of copying them; large numbers may have an infinite one, too, so then each is looked at.
    """
    tensor = content.scales() if isinstance(content, Rows) else content
    if not tensor.is_floating_point() or isfinite(tensor.sum().item()) or bool(tensor.isfinite().all()):
        return
    count = int((~tensor.isfinite()).sum())
    raise ModelError(
        f"{path}: {count} of the {tensor.numel()} numbers of {name} are NaN or infinite, so every result would be; the "
        f"file was damaged or saved from a training that had failed: {again}"
    )


# -- random content ------------------------------------------------------------------------------------------------


def randomise(
    module: nn.Module,
    seed: int,
    component: str,
    dtype: DtypePolicy,
    place: Home | torch.device | str,
    cuts: Mapping[str, Slices] = MappingProxyType({}),
) -> None:
    """Fills every parameter and persistent buffer of `module` with numbers drawn for (`seed`, `component`, its name).

    Norm weights are 1 +- 0.1, biases and running means +- 0.05, everything else normal with variance 1 / fan-in, so
    that activations stay finite. Numbers depend on the kind of device, never on the order or on other tensors.
    Counters are zero. Of the tensors in `cuts` the module has its share of the same numbers. Ends as `load_weights`.
    """
    home = home_of(place)
    cast(module, dtype)
    filling = Filling(module, home)
    for name, (tensor, _) in filling.slots.items():
        if tensor.is_floating_point():
            generator = torch.Generator(home.device).manual_seed(tensor_seed(seed, component, name))
            owner, _, key = name.rpartition(".")
            kind = type(module.get_submodule(owner)).__name__
            cut = cuts.get(name)
            drawn, space = draw(whole(tuple(tensor.shape), cut), key, kind, generator), filling.space(name)
            if cut is None or cut.spans or not by_rows(space):
                space.copy_(drawn if cut is None or by_rows(space) else held(drawn, cut))
        else:
            filling.space(name).copy_(torch.zeros(tensor.shape, dtype=tensor.dtype))
    filling.finish()


def tensor_seed(seed: int, component: str, name: str) -> int:
    """The seed, in [0, 2**63), of one tensor's numbers."""
    digest = hashlib.sha256(f"{seed}/{component}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def draw(shape: Shape, key: str, kind: str, generator: torch.Generator) -> Tensor:
    """Float32 numbers of `shape` for the tensor `key` of a module whose class is called `kind`."""
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if key in ("bias", "beta", "running_mean"):
        return 0.05 * noise
    if key in ("gamma", "running_var") or len(shape) <= 1 or "norm" in kind.lower():
        return 1.0 + 0.1 * noise.clamp(-3, 3)
    fan_in = max(noise.numel() // max(shape[0], 1), 1)
    return noise / fan_in**0.5
