"""What a decoder remembers of the tokens it has read, and what it is given to read next.

A `KV` is a slot of one state, so it is parked, woken and let go of like all others. Networks write behind the length
that the loop has committed; who reads again after a failure writes the same again.

Letters: L layers, N heads of keys and values, H head dim, S tokens of one row, V words of the vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from omnimuse.layers.network import Network


@dataclass(frozen=True)
class KV:
    """Keys and values, [L, 2, N, room, H]."""

    data: Tensor

    @property
    def room(self) -> int:
        """How many tokens there is room for."""
        return self.data.shape[3]

    def with_room(self, tokens: int) -> KV:
        """The same with room for so many `tokens`."""
        layers, two, heads, room, dim = self.data.shape
        data = self.data.new_empty(layers, two, heads, tokens, dim)
        data[:, :, :, :room] = self.data
        return KV(data)


@dataclass(frozen=True)
class Reading:
    """A row of a decoder: the tokens `ids` [S] that come after `start` others, which `kv` remembers."""

    ids: Tensor
    start: int
    kv: KV


class Decoder(Network):
    """A network whose rows are `Reading`s; its prediction is what comes after the last token, logits [V]."""

    packing: ClassVar[Literal["stack", "pad", "varlen"]] = "varlen"

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes in the memory."""
        return self.memory(1, torch.device("meta")).data.nbytes

    @abstractmethod
    def memory(self, room: int, device: torch.device) -> KV:
        """An empty memory with room for so many tokens."""
