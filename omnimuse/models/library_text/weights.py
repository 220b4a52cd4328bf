"""How names in the files of a language model become those of the library's modules: as the library has it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import library_rules
from omnimuse.loader.rules import Rename, Rule


def rules(checkpoint: Checkpoint, name: str, decoder: nn.Module) -> Sequence[Rule]:
    """The library's own, and where its model is in ours."""
    return (*library_rules(checkpoint, name, decoder.get_submodule("model")), Rename("^", "model."))
