"""Which tensors a component's safetensors files hold: names, shapes, number formats, and the file that counts for each.

Used by `weights` before anything is read. Reads headers only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from omnimuse.core.bounds import is_text
from omnimuse.core.errors import ModelError, reason
from omnimuse.loader import scaled
from omnimuse.loader.differences import Shape
from omnimuse.loader.eight_bits import in_eight_bits
from omnimuse.loader.files import AGAIN, WeightFiles, weight_files
from omnimuse.loader.foreign import Packed
from omnimuse.loader.libraries import packed_weights
from omnimuse.quant.packings import PACKINGS

PACKED = "omnimuse.packed"
"""Where the header of a file says which of its tensors are parts of packed weights: JSON, name -> [packing, outputs,
inputs, {part: name}]."""
KINDS = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32"}
"""What safetensors calls the formats of the parts of packed weights."""
MOST = 2**31
"""No layer has so many inputs or outputs."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `kind` is what the file format calls its dtype (`F32`, `BF16`, `I64`).

    For packed weights it is the name of their packing, and `shape` that of what they stand for; `parts` says under
    which names the tensors are that they consist of (part -> name), as we have them or, where they are `foreign`, as
    another library has.
    """

    path: Path
    shape: Shape
    kind: str
    parts: Mapping[str, str] = field(default_factory=dict)
    foreign: Packed | None = None


def stored_in(folder: Path) -> dict[str, Stored]:
    """Every tensor of the component in `folder`, by its name in the files.

    One that several shards hold is taken from the shard that the index names. ModelError if files are damaged, if the
    index is wrong about them, or if it does not say which of several to take.
    """
    files = weight_files(folder)
    found: dict[str, Stored] = {}
    copies: dict[str, Path] = {}  # left behind by whoever saved these shards again
    for path in files.paths:
        for name, stored in _header(path).items():
            if files.owners.get(name, path.name) != path.name:
                copies[name] = path
                continue
            if name in found:
                _refuse_twice(name, found[name].path, path, files)
            found[name] = stored
    for name, path in copies.items():
        if name not in found:
            raise ModelError(
                f"{files.index} says that {name} is in {files.owners[name]}, which does not hold it, and {path.name} "
                f"does: the index and the files are not of one checkpoint; {AGAIN}"
            )
    how = in_eight_bits(folder if folder.is_dir() else folder.parent)
    if how is None:
        return found
    kept = {name: each for name, each in found.items() if not scaled.is_note(name)}
    return _with(kept, scaled.packed(how, kept))


def check_name(path: Path) -> None:
    """ModelError for a file that safetensors would not open for its name, and would say of that it were damaged."""
    if not is_text(str(path)):
        raise ModelError(f"{path} cannot be opened: its name, or that of a folder, is not UTF-8 text; rename it")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors file `path`, its tensors as pages of the file; ModelError if it is damaged or cannot be read."""
    check_name(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as handle:
            yield handle
    except SafetensorError as problem:
        size = path.stat().st_size
        raise ModelError(
            f"{path} is damaged or cut short ({size} bytes; safetensors says: {problem}). Delete this file, "
            f"then {AGAIN}"
        ) from problem
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {reason(problem)}") from problem


def _header(path: Path) -> dict[str, Stored]:
    with opened(path) as handle:
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        found = {name: Stored(path, tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        said = (handle.metadata() or {}).get(PACKED)
        kinds = {name: each.kind for name, each in found.items()}
        found = _with(found, packed_weights(path, handle, kinds), path)
    if said is None:
        return found
    try:
        packed = {name: _packed(path, about, found) for name, about in json.loads(said).items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as problem:
        raise ModelError(
            f"{path} does not say how its weights are packed as omnimuse writes it ({type(problem).__name__}: "
            f"{problem}); {AGAIN}"
        ) from problem
    parts = {name for each in packed.values() for name in each.parts.values()}
    return {name: each for name, each in found.items() if name not in parts} | packed


def _with(found: Mapping[str, Stored], packed: Mapping[str, Packed], path: Path | None = None) -> dict[str, Stored]:
    """`found` with packed weights in the place of their parts, in the file `path` or in that of their names."""
    gone = {part for each in packed.values() for part in each.parts.values()}
    foreign = {
        name: Stored(path or found[name].path, each.shape, each.kind, each.parts, each) for name, each in packed.items()
    }
    return {name: each for name, each in found.items() if name not in gone} | foreign


def _packed(path: Path, about: Any, found: Mapping[str, Stored]) -> Stored:
    """Packed weights of the header's table; the parts must be in the file, as they are to be."""
    packing, outputs, inputs, parts = about
    if not 0 < int(outputs) < MOST or not 0 < int(inputs) < MOST or {int(outputs), int(inputs)} != {outputs, inputs}:
        raise ValueError(f"weights of {outputs}x{inputs} are none")
    expected = PACKINGS[packing].empty(outputs, inputs)
    have = {part: (found[name].shape, found[name].kind) for part, name in parts.items()}
    if have != {part: (tuple(each.shape), KINDS[each.dtype]) for part, each in expected.items()}:
        raise ValueError(f"{packing} weights of {outputs}x{inputs} do not consist of parts of {have}")
    return Stored(path, (outputs, inputs), packing, parts)


def _refuse_twice(name: str, first: Path, second: Path, files: WeightFiles) -> None:
    said = "there is no index" if files.index is None else f"{files.index.name} does not name it"
    raise ModelError(
        f"{first} and {second} both hold the tensor {name}, and nothing says which counts: {said}. Remove the shard "
        f"that does not belong here, or {AGAIN}"
    )
