"""What memory there is: what weights take, and what one forward takes beside them at the least.

Bounds from below, of the widest layer alone: what is refused by them never fits, and what they let in may still be too
much. Asked by the engine when a request comes, and by what tells people where memory goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from omnimuse.layers.few import FewLinear
from omnimuse.layers.network import Network
from omnimuse.layers.steady import SteadyLinear
from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.visited import block_lists
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.worker.place import WHOLE, Portion, free_bytes

Size = tuple[int, int]


@dataclass(frozen=True)
class Space:
    """The bytes that there are beside the weights (None: nobody knows), `coming` ones among them, which wait elsewhere
    and are there while a network runs. By component what weights take: the whole, and the largest of the blocks that
    come in one at a time (0: none do). `tokens` is what a row's token takes.
    """

    room: int | None = None
    coming: int = 0
    weights: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(
        components: Mapping[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        *,
        layerwise: bool = False,
        portion: Portion = WHOLE,
    ) -> Space:
        """What there is now of that `portion` of the machine, when all weights are where they wait or work."""
        modules = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
        blocks = {name: lone_blocks(part) if layerwise else [] for name, part in modules.items()}
        weights = {name: (held(part), max(map(held, blocks[name]), default=0)) for name, part in modules.items()}
        tokens = {name: token_bytes(part, dtype) for name, part in modules.items()}
        coming = max((brought(part, blocks[name]) for name, part in modules.items() if tokens[name]), default=0)
        packing = sum(part.unmade for module in modules.values() for part in few_of(module))
        return Space(max(0, free_bytes(device, portion) - coming - packing), coming, weights, tokens)

    def within(self, room: int | None, device: torch.device) -> Space:
        """The same with so much `room` beside the weights (None: as much as there is): of a GPU no more than is free,
        of a machine what is said, since what others leave of it is a guess.
        """
        if room is None:
            return self
        return replace(self, room=room if self.room is None or device.type == "cpu" else min(room, self.room))

    def less(self, taken: int) -> Space:
        """The same, where so many bytes of the room are `taken`."""
        return self if self.room is None else replace(self, room=max(0, self.room - taken))

    def in_a_tick(self) -> int | None:
        """The row tokens for which there is room, at least one; None where nobody knows."""
        widest = max(self.tokens.values(), default=0)
        return None if self.room is None or not widest else max(1, self.room // widest)


def held(module: nn.Module) -> int:
    """The bytes of its weights, those among them that are packed for few rows, made or not."""
    stored = sum(tensor.nbytes for tensor, _ in stored_tensors(module).values())
    return stored + sum(part.packed_bytes for part in few_of(module))


def few_of(module: nn.Module) -> Iterable[FewLinear]:
    """Its layers for few rows."""
    return (part for part in module.modules() if isinstance(part, FewLinear))


def brought(module: nn.Module, blocks: Sequence[nn.Module]) -> int:
    """The bytes of its weights that wait elsewhere and are there while it runs; of `blocks`, which take turns, one."""
    waiting = [_absent(block) for block in blocks]
    return _absent(module) - sum(waiting) + max(waiting, default=0)


def _absent(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor, _ in stored_tensors(module).values() if tensor.is_meta)


def blocks_of(module: nn.Module) -> Iterable[nn.Module]:
    """The blocks of a network that runs at every step; of another, none."""
    return module.all_blocks() if isinstance(module, Network) else []


def lone_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks that come in one at a time where weights wait by layers: of a library's network, its lists of them."""
    return list(blocks_of(module)) or [block for blocks in block_lists(module) for block in blocks]


def token_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """What a token takes at the least while blocks of `module` run: the inputs and outputs of the widest layer."""
    parts = [part for block in blocks_of(module) for part in block.modules()]
    shapes = [
        (part.inputs, part.like().shape[0]) if isinstance(part, QuantizedLinear) else part.weight.shape
        for part in parts
        if isinstance(part, QuantizedLinear | nn.Linear | SteadyLinear)
    ]
    return max(map(sum, shapes), default=0) * dtype.itemsize


def nearest_size(size: Size, step: int, fits: Callable[[Size], bool]) -> Size | None:
    """The largest size of these proportions that fits, its sides multiples of `step`; None if none does."""
    longest = max(size) // step
    for count in range(longest, 0, -1):
        width, height = (max(1, round(side * count / max(size))) * step for side in size)
        if fits((width, height)):
            return width, height
    return None
