"""A module's tensors before and while they are filled: how it is built empty, where its tensors are, in which dtype.

Used by `weights` and `components`, and by the build pass that makes a network. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from omnimuse.core.errors import ModelError

M = TypeVar("M", bound=nn.Module)

_PATTERN = re.compile(r"[\w*?.\[\]-]+")


@dataclass(frozen=True)
class DtypePolicy:
    """The dtype that weights get: `default`, but float32 for names that match one of the `float32` patterns.

    A pattern is one or more whole dotted pieces of a name, with `*` and `?` inside a piece: `norm1` and
    `blocks.*.norm1` both match `blocks.3.norm1.weight`. Tensors that hold no floats keep their own dtype.
    """

    default: torch.dtype
    float32: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.float32:
            if not _PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"float32 pattern {pattern!r} is not allowed; use dotted pieces of a name, with * and ? (no regex)"
                )

    def of(self, name: str) -> torch.dtype:
        """The dtype of the floating-point tensor called `name`."""
        if any(matches(name, pattern) for pattern in self.float32):
            return torch.float32
        return self.default


def matches(name: str, pattern: str) -> bool:
    """Whether whole pieces of `name`, beside each other, fit the pieces of `pattern`."""
    pieces, parts = name.split("."), pattern.split(".")
    windows = (pieces[start : start + len(parts)] for start in range(len(pieces) - len(parts) + 1))
    return any(all(map(fnmatchcase, window, parts)) for window in windows)


class Home(Protocol):
    """Where the tensors of one module are written to while it is filled, and where it computes: `device`.

    They may stay there (`OnDevice`), or wait there until they are brought in (`waits`).
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def waits(self) -> bool: ...

    def space(self, name: str, like: Tensor) -> Tensor:
        """Memory for the content of the tensor called `name`: of the shape, dtype and order of `like`."""
        ...

    def seal(self) -> None:
        """Everything is written."""
        ...


@dataclass(frozen=True)
class OnDevice:
    """The home of a module whose tensors stay on `device`."""

    device: torch.device
    waits: bool = False

    def space(self, name: str, like: Tensor) -> Tensor:
        return _memory(like, like.dtype, self.device)

    def seal(self) -> None:
        """Nothing to do."""


def _memory(like: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Memory of the shape and order of `like`. Of what is on meta, torch takes ten times as long to find the order.

    A tensor of four dimensions may be in both orders by its sizes, and kernels go by its strides.
    """
    if 0 in like.stride():  # parts of it share memory
        return torch.empty_like(like, dtype=dtype, device=device)
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=device)


def home_of(place: Home | torch.device | str) -> Home:
    """`place`, or the home of what stays on that device."""
    return OnDevice(torch.device(place)) if isinstance(place, str | torch.device) else place


_FILLS = frozenset(name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")) | {
    *("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "sub_", "zero_")
}


class _WithoutFilling(TorchFunctionMode):
    """Leaves the memory of parameters untouched where a constructor would fill it with initial values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, nn.Parameter) and func.__name__ in _FILLS:
            return target
        return func(*args, **kwargs)


class _WithoutParameters(_WithoutFilling):
    """And has no memory for what a constructor leaves as it finds it, which is to be filled by nobody else here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        nowhere = {"device": "meta"} if func is torch.empty else {}
        return super().__torch_function__(func, types, args, {**(kwargs or {}), **nowhere})


def outline(make: Callable[[], M]) -> M:
    """`make()` with all of its tensors on the meta device: names and shapes, and nothing to compute with."""
    with torch.device("meta"), _WithoutFilling():  # to fill what is not there, torch would import its compiler
        return make()


def construct(make: Callable[[], M]) -> M:
    """`make()` with parameters on the meta device; buffers that no checkpoint stores are computed, on the CPU.

    They stay in the dtype the constructor gives them (rotary frequencies in float32), as a library's own loading does.
    """
    module = outline(make)
    kept = set(module.state_dict())
    wanting = [name for name, _ in module.named_buffers(remove_duplicate=False) if name not in kept]
    if wanting:
        with torch.device("cpu"), _WithoutParameters(), torch.no_grad():
            donor = dict(make().named_buffers(remove_duplicate=False))
        for name in wanting:
            place(module, name, donor[name])
    return module


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes `tensor` the parameter or buffer `name` of `module`; parameters get no gradient."""
    place_everywhere(module, (name,), tensor)


def stored_tensors(module: nn.Module) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Parameters and persistent buffers: first name -> (tensor, every name). Tied ones have several names."""
    tensors: dict[int, Tensor] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            tensors[id(tensor)] = tensor
            names.setdefault(id(tensor), []).append(name)
    return {names[key][0]: (tensor, tuple(names[key])) for key, tensor in tensors.items()}


def present_tensors(module: nn.Module) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Those of them that are there; those of an offloaded module may wait."""
    return {name: stored for name, stored in stored_tensors(module).items() if not stored[0].is_meta}


def place_everywhere(module: nn.Module, names: tuple[str, ...], tensor: Tensor) -> None:
    """As `place` for all `names` of one tied tensor: they go on sharing it."""
    spots = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    owner, key = spots[0]
    if any(key == own for own, _ in owner.named_parameters(recurse=False, remove_duplicate=False)):
        tensor = nn.Parameter(tensor, requires_grad=False)
    for owner, key in spots:
        setattr(owner, key, tensor)


def cast(module: nn.Module, dtype: DtypePolicy) -> None:
    """Gives every stored tensor of floats the dtype that it will have. Its content, if it has any, is let go."""
    for name, (tensor, names) in stored_tensors(module).items():
        if tensor.is_floating_point() and tensor.dtype != dtype.of(name):
            place_everywhere(module, names, _memory(tensor, dtype.of(name), "meta"))


def settle(module: nn.Module, home: Home) -> None:
    """Ends the filling of `module`: buffers that no file stores go to the home's device, eval mode, no gradients.

    ModelError if anything is left on meta that does not wait in its home.
    """
    home.seal()
    kept = set(module.state_dict())
    for name, buffer in list(module.named_buffers(remove_duplicate=False)):
        if name not in kept and not buffer.is_meta:
            place(module, name, buffer.to(home.device))
    left = [name for name in _on_meta(module) if not (home.waits and name in kept)]
    if left:
        raise ModelError(
            f"{type(module).__name__} still has tensors without content: {', '.join(left[:8])}; build it with "
            "omnimuse.loader.tensors.construct and keep computed tensors in buffers (register_buffer)"
        )
    module.requires_grad_(False).eval()


def _on_meta(module: nn.Module) -> Iterator[str]:
    for owner, inside in module.named_modules():
        parts = [*inside.named_parameters(recurse=False), *inside.named_buffers(recurse=False)]
        parts += [(key, value) for key, value in vars(inside).items() if isinstance(value, Tensor)]
        for key, value in parts:
            if value.is_meta:
                yield f"{owner}.{key}" if owner else key
