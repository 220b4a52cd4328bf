"""Tensors of a checkpoint that nothing reads, and that equal one that is read: told of, not refused.

Some tools store a parameter under two names. The libraries load such files with a warning, and so do we; anything else
that is left over means that the network is another one. Used by `weights` where everything else fits.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from omnimuse.loader.differences import is_idle, listed
from omnimuse.loader.headers import Stored, opened
from omnimuse.loader.plan import Plan

log = logging.getLogger(__name__)


def set_copies_aside(folder: Path, plan: Plan, stored: Mapping[str, Stored]) -> None:
    """Takes second copies off what is unexpected in `plan`, with a warning that names them.

    Nothing is read where names or shapes differ otherwise, and no more than one tensor that is no copy.
    """
    left = [name for name in plan.unexpected if not is_idle(name)]
    if not left or plan.missing or plan.misshaped:
        return
    alike = defaultdict(list)
    for name in plan.pieces:
        alike[stored[name].shape].append(name)
    copies: dict[str, str] = {}
    with ExitStack() as stack:
        handles = {path: stack.enter_context(opened(path)) for path in {each.path for each in stored.values()}}
        for name in left:
            tensor = handles[stored[name].path].get_tensor(name)
            others = [] if _one_value(tensor) else alike[stored[name].shape]
            copied = next((o for o in others if _equal(handles[stored[o].path].get_tensor(o), tensor)), None)
            if copied is None:
                break
            copies[name] = copied
    for name in copies:
        del plan.unexpected[name]
    if copies:
        told = listed([f"{name} (of {copied})" for name, copied in copies.items()])
        log.warning("%s has tensors that nothing reads, second copies of what is read: %s", folder, told)


def _one_value(tensor: Tensor) -> bool:
    """All ones, or all zeros: what any fresh norm or bias holds, so that it says nothing of where it came from."""
    flat = tensor.flatten()
    return bool((flat == flat[:1]).all())


def _equal(one: Tensor, other: Tensor) -> bool:
    wide = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(wide), other.to(wide))
