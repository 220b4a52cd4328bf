"""The contract between the engine's tick and a denoising network.

The tick collects rows (one per state and guidance branch) and calls the network once for those that can share
a forward; the network alone decides how they are packed. Build passes reach its blocks through `stacks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from omnimuse.core.plans import Cutting
from omnimuse.layers.stack import Block, BlockStack, Memory


class Network(nn.Module, ABC):
    """A network that evaluates several rows in one forward.

    `packing` says which rows may share it: "stack" those of equal shape, "pad" any (short ones are padded and
    masked), "varlen" any (tokens are laid end to end), "tokens" the same, but rows of one token apart from others. A
    row is the model's own frozen dataclass of inputs.
    """

    packing: ClassVar[Literal["stack", "pad", "varlen", "tokens"]]
    parted: ClassVar[bool] = True
    """Whether ranks may each have a part of a row's tokens; where `Conditioning.cut` never gives one, all have all."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The network that a checkpoint's config.json describes; ModelError for a variant it cannot be."""

    @abstractmethod
    def forward(self, rows: Sequence[Any], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        """One prediction per row, in order. `memories` has one entry per row if step caches may be used."""

    @abstractmethod
    def stacks(self) -> dict[str, BlockStack]:
        """The stacks that run at every step, by name."""

    def all_blocks(self) -> list[Block[Any]]:
        """The blocks of all stacks, in order."""
        return [block for stack in self.stacks().values() for block in stack.blocks()]

    def last_stack(self) -> BlockStack:
        """The last of them, in which most of the time goes: a step cache is around that."""
        return list(self.stacks().values())[-1]

    def plan(self) -> Mapping[str, Cutting]:
        """How ranks may share out the weights: linear layers and norms by pattern, and how each is cut.

        Whatever is not named, every rank has whole. Nothing named: tensor parallelism is refused.
        """
        return {}
