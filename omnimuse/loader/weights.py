"""Streams safetensors into a network that was built empty, or fills it with random numbers (`--load dummy`).

Called by the worker's build and by `components`. Names and shapes are compared before the first tensor is read; then
every tensor is read once, cast, and written to its place on the device. Never opens a pickle, never guesses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.differences import Shape, refuse_differences
from omnimuse.loader.files import AGAIN, weight_files
from omnimuse.loader.plan import Piece, plan_load
from omnimuse.loader.rules import Rule
from omnimuse.loader.tensors import DtypePolicy, place_everywhere, settle, stored_tensors

__all__ = ["DtypePolicy", "LoadReport", "load_weights", "randomise", "stored_shapes"]


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
    device: torch.device | str,
) -> LoadReport:
    """Fills `module` (see `tensors.construct`) with the safetensors in `folder`, renamed and fused by `rules`.

    Parameters and persistent buffers end on `device` in the dtype that the policy gives their name, without
    gradient, in eval mode. ModelError lists names that are missing, unexpected or of another shape, and files that
    are damaged.
    """
    device = torch.device(device)
    shapes = {path: stored_shapes(path) for path in weight_files(folder)}
    slots = stored_tensors(module)
    ties = {name: first for first, (_, names) in slots.items() for name in names}
    wanted = {name: tuple(slots[first][0].shape) for name, first in ties.items()}
    stored = {name: shape for contents in shapes.values() for name, shape in contents.items()}
    plan = plan_load(stored, wanted, ties, rules)
    refuse_differences(folder, plan.differences)
    filled: dict[str, Tensor] = {}
    size = 0
    for path, contents in shapes.items():
        with _opened(path) as handle:
            for source in (name for name in contents if name in plan.pieces):
                piece = plan.pieces[source]
                name, tensor = ties[piece.target], handle.get_tensor(source)
                if name not in filled:
                    filled[name] = _empty(slots[name][0], dtype.of(name), device)
                _write(filled[name], piece, tensor)
                size += tensor.nbytes
    for name, tensor in filled.items():
        place_everywhere(module, slots[name][1], tensor)
    settle(module, device)
    return LoadReport(len(plan.pieces), size, tuple(shapes))


def stored_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of the tensors in the safetensors file `path`; ModelError if it is damaged. Reads the header only."""
    with _opened(path) as handle:
        return {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
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
        raise ModelError(f"{path} cannot be read: {problem}") from problem


def _empty(like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(like.shape, dtype=dtype if like.is_floating_point() else like.dtype, device=device)


def _write(into: Tensor, piece: Piece, tensor: Tensor) -> None:
    if piece.start is not None:
        into = into.narrow(piece.dim, piece.start, piece.stop - piece.start)
    into.copy_(tensor)


# -- random content ------------------------------------------------------------------------------------------------


def randomise(module: nn.Module, seed: int, component: str, dtype: DtypePolicy, device: torch.device | str) -> None:
    """Fills every parameter and persistent buffer of `module` with numbers drawn for (`seed`, `component`, its name).

    Norm weights are 1 +- 0.1, biases and running means +- 0.05, everything else normal with variance 1 / fan-in, so
    that activations stay finite. Numbers depend on the kind of `device`, never on the order or on other tensors.
    Counters are zero. Ends as `load_weights` does.
    """
    device = torch.device(device)
    for name, (tensor, names) in stored_tensors(module).items():
        filled = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        if tensor.is_floating_point():
            generator = torch.Generator(device).manual_seed(tensor_seed(seed, component, name))
            owner, _, key = name.rpartition(".")
            kind = type(module.get_submodule(owner)).__name__
            filled = draw(tuple(tensor.shape), key, kind, generator).to(dtype.of(name))
        place_everywhere(module, names, filled)
    settle(module, device)


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
