"""The tensors of one file of weights, as other programs share them: safetensors with floats of 16 or of 8 bits, GGUF.

Packed weights stay packed. So that the library's converters can cut and join them, each is a *mark* for that time: one
number a row, which says whose row it is. What came of the rows is read off the marks afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnimuse.core.errors import ModelError, reason
from omnimuse.loader.files import PICKLES
from omnimuse.loader.headers import check_name
from omnimuse.loader.libraries import packed_weights
from omnimuse.quant.packings import PACKINGS, WIDE_FP8, Rows

Tensors = dict[str, Tensor]
Facts = Mapping[str, str | int | float]

GGUF = ".gguf"
MARK = torch.complex128
"""The format of marks, in which no checkpoint has numbers: whose row it is, and which."""

EIGHT_BITS = {torch.float8_e4m3fn: "fp8", torch.float8_e5m2: WIDE_FP8}
_SCALE = re.compile(r"(.*)\.(scale_weight|weight_scale)")
_NOTES = re.compile(r"(^|.*\.)(scaled_fp8|scale_input|input_scale|comfy_quant)")
"""What else such files hold: that weights are scaled, and scales of inputs, which stay floats here."""

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPE = "comfy.gguf.orig_shape."
"""The field that has the shape of a tensor that a GGUF file holds in another one, before its name."""


@dataclass(frozen=True)
class Content:
    """The tensors of a file by name, of which some are marks of `packed` ones, by number; and the `facts` that a GGUF
    file tells of its model, texts and numbers.
    """

    tensors: Tensors
    packed: list[Rows] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of what the tensor `name` stands for."""
        return tuple(self.one(name).shape)

    def one(self, name: str) -> Tensor | Rows:
        """What the file holds by that name."""
        tensor = self.tensors[name]
        return self.packed[int(tensor.real[0, 0])] if tensor.dtype == MARK else tensor

    def resolved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor | Rows]:
        """`tensors` that were made of these, with packed weights in the place of marks.

        What was joined of rows of different packings, or cut otherwise than by rows, is none: KeyError.
        """
        return {name: self._rows(name, each) if each.dtype == MARK else each for name, each in tensors.items()}

    def floats(self, tensors: Mapping[str, Tensor]) -> Tensors:
        """As `resolved`, with packed weights in bfloat16."""
        found = self.resolved(tensors)
        return {n: each.floats().to(torch.bfloat16) if isinstance(each, Rows) else each for n, each in found.items()}

    def _rows(self, name: str, mark: Tensor) -> Rows:
        whose, which = mark.real.flatten().long(), mark.imag.flatten().long()
        sources = [self.packed[int(number)] for number in whose.unique()]
        if mark.ndim != 2 or mark.shape[1] != 1 or len({(each.packing, each.inputs) for each in sources}) != 1:
            raise KeyError(f"{name} is not made of whole rows of one packing")
        first, *others = sources  # those of one in another order at once: pieces of it would be thousands
        if not others and len(which) > 1 and not bool((which[1:] == which[:-1] + 1).all()):
            return Rows(first.packing, first.inputs, {part: each[which] for part, each in first.parts.items()})
        breaks = ((whose[1:] != whose[:-1]) | (which[1:] != which[:-1] + 1)).nonzero().flatten() + 1
        starts = [0, *breaks.tolist()]
        runs = [
            (self.packed[int(whose[start])], int(which[start]), int(which[stop - 1]) + 1)
            for start, stop in zip(starts, [*starts[1:], len(whose)], strict=True)
        ]
        pieces = {part: [rows.parts[part][start:stop] for rows, start, stop in runs] for part in first.parts}
        parts = {part: torch.cat(each) if len(each) > 1 else each[0] for part, each in pieces.items()}
        return Rows(first.packing, first.inputs, parts)


def read_file(file: Path) -> Content:
    """What `file` holds; ModelError for one that is damaged, or whose kind is not read."""
    tensors: Tensors = {}
    packed: list[Rows] = []
    reader = _gguf_reader(file) if file.suffix == GGUF else None
    for name, content in _safetensors(file) if reader is None else _gguf(file, reader):
        if isinstance(content, Rows):
            tensors[name] = torch.complex(
                torch.full((content.shape[0], 1), len(packed), dtype=torch.float64),
                torch.arange(content.shape[0], dtype=torch.float64).unsqueeze(1),
            )
            packed.append(content)
        else:
            tensors[name] = content
    return Content(tensors, packed, {} if reader is None else _facts(reader))


def shapes_in(file: Path) -> Tensors:
    """Tensors without memory, of the names and shapes in `file`."""
    if file.suffix == GGUF:
        told = _gguf(file, _gguf_reader(file))
        return {name: torch.empty(content.shape, device="meta") for name, content in told}
    with _opened(file) as opened:
        kinds = {name: opened.get_slice(name).get_dtype() for name in list(opened.keys())}
        packed = packed_weights(file, opened, kinds)
        gone = {part for each in packed.values() for part in each.parts.values()}
        shapes = {name: opened.get_slice(name).get_shape() for name in kinds if name not in gone}
        shapes |= {name: each.shape for name, each in packed.items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# -- safetensors -----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """`file`, open; ModelError for one that is not read."""
    if file.suffix in PICKLES:
        raise ModelError(f"{file} is a pickle, which can run any code when it is opened; use a *.safetensors file")
    if file.suffix != ".safetensors":
        raise ModelError(f"{file} is no *.safetensors or *.gguf file; other formats are not read")
    check_name(file)
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except FileNotFoundError:
        raise ModelError(f"there is no file {file}") from None
    except (OSError, SafetensorError) as problem:
        raise ModelError(f"{file} cannot be read: {reason(problem)}; get it again") from problem


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor | Rows]]:
    """Names and contents; weights of 8 bits are rows with their scales, as is said beside them or 1, and those of
    other libraries as they are.
    """
    with _opened(file) as opened:
        tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        for name, each in packed_weights(file, opened, {n: opened.get_slice(n).get_dtype() for n in tensors}).items():
            yield name, each.content(opened)
            for part in each.parts.values():
                del tensors[part]
    scales = _scales(file, tensors)
    for name, tensor in tensors.items():
        if _NOTES.fullmatch(name):
            continue
        kind, size = EIGHT_BITS.get(tensor.dtype), scales.get(name, torch.ones(1, 1))
        if kind is None:
            yield name, tensor
        elif tensor.ndim == 2:
            parts = {"weight": tensor.view(torch.uint8), "weight_scale": size.expand(len(tensor), 1)}
            yield name, Rows(kind, tensor.shape[1], parts)
        else:
            yield name, (tensor.float() * size.view(-1, *[1] * (tensor.ndim - 1))).to(torch.bfloat16)


def _scales(file: Path, tensors: Tensors) -> dict[str, Tensor]:
    """What weights are multiplied by, by their names: [1, 1] or, for each output, [outputs, 1]. Taken out of `tensors`;
    ModelError for one that belongs to no weights of 8 bits, or to parts of their rows.
    """
    found = dict[str, Tensor]()
    for name in list(tensors):
        if (match := _SCALE.fullmatch(name)) is None:
            continue
        scale, weight = tensors.pop(name).float(), f"{match[1]}.weight"
        of = tensors.get(weight)
        if of is not None and of.dtype in EIGHT_BITS and weight not in found:
            if scale.numel() not in (1, len(of) if of.ndim else 1):
                raise ModelError(
                    f"{file}: {name} is {list(scale.shape)} numbers for weights of {list(of.shape)}, which is not "
                    "read; one for all or one for each output is"
                )
            found[weight] = scale.reshape(-1, 1)
        elif not bool((scale == 1).all()):
            why = "of which there is another scale" if weight in found else "which are not there in 8 bits"
            raise ModelError(f"{file}: {name} is a scale of {weight}, {why}; get the file again, or use another one")
    return found


# -- GGUF ------------------------------------------------------------------------------------------------------------


def _gguf_reader(file: Path) -> Any:
    """`file`, open; ModelError for one that is not read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(f"{file} needs the package gguf to be read: pip install 'omnimuse[gguf]'") from None
    try:
        return GGUFReader(file, "c")  # torch wants pages that could be written to
    except FileNotFoundError:
        raise ModelError(f"there is no file {file}") from None
    except OSError as problem:
        raise ModelError(f"{file} cannot be read: {reason(problem)}; get it again") from problem
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as problem:
        size = file.stat().st_size
        raise ModelError(
            f"{file} cannot be read: it is no GGUF file, or damaged or cut short ({size} bytes); get it again"
        ) from problem


def _facts(reader: Any) -> Facts:
    """What the file tells of its model, but for lists."""
    told = {name: each.contents() for name, each in reader.fields.items() if len(each.types) == 1}
    return {name: each for name, each in told.items() if isinstance(each, str | int | float)}


def _gguf(file: Path, reader: Any) -> Iterator[tuple[str, Tensor | Rows]]:
    """Names and contents, as pages of the file."""
    for tensor in reader.tensors:
        shape = tuple(reversed([int(size) for size in tensor.shape]))
        said = reader.fields.get(SHAPE + tensor.name)
        stands_for = tuple(int(size) for part in said.data for size in said.parts[part][:1]) if said else shape
        if not prod(shape) or prod(shape) != prod(stands_for) or min(stands_for, default=1) < 1:
            raise ModelError(
                f"{file}: {tensor.name} has {list(shape)} numbers for weights of {list(stands_for)}; get it again"
            )
        yield tensor.name, _content(file, tensor, shape, stands_for)


def _content(file: Path, tensor: Any, shape: tuple[int, ...], stands_for: tuple[int, ...]) -> Tensor | Rows:
    """A tensor of `shape` in the file, which `stands_for` one of another shape."""
    kind, data = tensor.tensor_type.name, torch.from_numpy(tensor.data)
    if kind in FLOATS:
        return data.view(FLOATS[kind]).reshape(stands_for)
    if kind not in PACKINGS:
        known = ", ".join([*FLOATS, *(name for name in PACKINGS if name.isupper())])
        raise ModelError(f"{file}: {tensor.name} is packed as {kind}, which is not read; use a file of {known}")
    rows = Rows(kind, shape[-1], {"weight": data.reshape(-1, data.shape[-1])})
    return rows if len(shape) == 2 and shape == stands_for else rows.floats().reshape(stands_for)
