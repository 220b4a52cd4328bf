"""Layerwise offload: the weights of a stack are on the compute device only while their block runs.

A build pass sets a `LayerwiseOffload` as a stack's runner after loading. The blocks' own parameters become
meta tensors and stay so; every call hands a block its weights from a store (see `offload/stores.py`) for the
time of that call. Results are bit for bit those of a resident stack, and a block that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from omnimuse.core.errors import EngineDeadError
from omnimuse.layers.stack import Block, Conditioning, Memory
from omnimuse.offload.stores import FolderStore, HostStore, Store


class LayerwiseOffload:
    """A stack runner that owns the weights of `blocks` and brings them in one block at a time.

    With an accelerator as `device` they wait in pinned host memory, and the next block is copied while one
    runs. On a CPU they wait in one file per block under `folder`, which is created if needed.
    """

    def __init__(self, blocks: Sequence[Block[Any]], device: torch.device, folder: Path | None = None) -> None:
        self._keys = {block: str(index) for index, block in enumerate(blocks)}
        self._store: Store = FolderStore(folder) if device.type == "cpu" else HostStore(device)
        self._closed = False
        for block, key in self._keys.items():
            self._store.put(key, _tensors(block))
            block.to_empty(device="meta")

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        for index, block in enumerate(blocks):
            with self._store.bring(self._key(block)) as weights:
                hidden = functional_call(block, weights, (hidden, cond))
            if index + 1 < len(blocks):
                self._store.expect(self._key(blocks[index + 1]))
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        with self._store.bring(self._key(blocks[0])) as weights:
            named = {f"block.{name}": tensor for name, tensor in weights.items()}
            return functional_call(_Probe(blocks[0]), named, (hidden, cond))

    def close(self) -> None:
        """Let go of all weights and remove their files. The blocks cannot run any more."""
        self._closed = True
        self._store.close()

    def _key(self, block: Block[Any]) -> str:
        if self._closed:
            raise EngineDeadError("the weights of this network were released by close(); start a new engine")
        return self._keys[block]


class _Probe(nn.Module):
    """A block whose forward is its probe, since `functional_call` calls nothing else."""

    def __init__(self, block: Block[Any]) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.block.probe(hidden, cond)


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name. A tied tensor appears once; `functional_call` ties it again."""
    return {name: tensor.detach() for name, tensor in (*block.named_parameters(), *block.named_buffers())}
