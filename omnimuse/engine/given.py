"""Finished outputs that were handed out, as long as somebody has them: an encoder until its files are written, a caller
for as long as it likes. Where the engine computes on the CPU, they take of its room.

Asked by the engine whenever it decides; whoever lets go of an output, on any thread, need tell nobody.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

import torch
from torch import Tensor, UntypedStorage

from omnimuse.core.output import Result


class Given:
    """Of an engine on one `device`; where that is not the CPU, outputs wait elsewhere and nothing is counted."""

    def __init__(self, device: torch.device) -> None:
        self._counts = device.type == "cpu"
        self._memories: WeakValueDictionary[int, UntypedStorage] = WeakValueDictionary()

    def add(self, result: Result) -> None:
        """It is handed out now. What parts of its tensors are had by, the whole is."""
        for made in result.tensors.values() if self._counts else ():
            for each in made if isinstance(made, list) else [made]:
                if isinstance(each, Tensor):
                    memory = each.untyped_storage()
                    self._memories[memory.data_ptr()] = memory

    @property
    def bytes(self) -> int:
        """What somebody still has."""
        return sum(memory.nbytes() for memory in self._memories.values())
