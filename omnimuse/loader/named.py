"""What a family's spec names by import path: networks, and the rules by which names in files become theirs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from omnimuse.core.errors import ModelError
from omnimuse.core.spec import Component
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import library_rules
from omnimuse.loader.rules import Rule


def import_named(path: str) -> Any:
    """What `module:name` in a family's spec names."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as problem:
        if isinstance(problem, ModuleNotFoundError) and not module.startswith(str(problem.name)):
            raise  # the module is there, and what it needs is not
        raise ModelError(
            f"{path!r} in the spec of a family names nothing that can be imported ({problem}); "
            "write the module's path, a colon, and the name of the class or of the rules in it"
        ) from problem


def rules_of(component: Component, checkpoint: Checkpoint, name: str, module: nn.Module) -> Sequence[Rule]:
    """The rules by which names in the files of `name` become those of `module`."""
    if not component.network:
        return library_rules(checkpoint, name, module, component.part)
    found = import_named(component.rules) if component.rules else ()
    rules: Sequence[Rule] = found(checkpoint, name, module) if callable(found) else found
    return rules
