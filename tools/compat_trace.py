"""Where two runs of one network part: what its modules made when they first ran, by their names.

Used by `compat_check.py` to say which module of a borrowed network is the first that does not make what that of
diffusers makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

DECODER = re.compile(r"\w*Decoder(3d)?")
"""What the decoder of an autoencoder is called."""

FAR = 1e-3
"""How far a module's output may be from the other's, of its largest number."""

FAR_IN_HALF = 0.03
"""The same, of numbers in bfloat16."""


@contextmanager
def traced(kind: str) -> Iterator[dict[str, Tensor]]:
    """What modules of a network of class `kind` first give, and of a decoder, by their names, in the order in which
    they do; of the network itself every output.
    """
    first: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    seen: set[str] = set()
    count = 0

    def note(module: nn.Module, _: Any, made: Any) -> None:
        nonlocal count
        tensor, name = next(_tensors(made), None), type(module).__name__
        if tensor is not None:
            first.setdefault(id(module), tensor.detach().float().clone())
        if (name == kind or DECODER.fullmatch(name)) and name not in seen:
            seen.add(name)
            names = {id(each): f"{name}.{path}" for path, each in module.named_modules() if path}
            found.update({names[each]: value for each, value in first.items() if each in names})
        if name == kind and tensor is not None:
            count += 1
            found[f"{name}, call {count}"] = tensor.detach().float().clone()

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def parting(theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], half: bool = False) -> str:
    """The first module by whose output the two are apart, and by how much of its largest number; empty if none is."""
    for name, tensor in expected.items():
        other = theirs.get(name)
        if other is None or other.numel() != tensor.numel():
            continue
        far = float((other.reshape(-1) - tensor.reshape(-1)).abs().max() / tensor.abs().max().clamp(min=1e-6))
        if not far <= (FAR_IN_HALF if half else FAR):
            return f"first at {name}, by {far:.2g} of its largest number"
    return ""


def _tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, list | tuple):
        for each in made:
            yield from _tensors(each)
