"""What a decoder remembers, on its way between pools: whole there, while ranks of the tensor axis each have some heads.

Every rank that has a part calls these alike.
"""

from __future__ import annotations

import torch

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cut
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import PIPE, TENSOR, Mesh


def whole_of(kv: KV, mesh: Mesh) -> KV:
    """All heads of what is remembered here. ModelError where ranks have some of its layers each."""
    axis, heads = mesh.axis(TENSOR), kv.data.shape[2]
    if mesh.axis(PIPE).size > 1:
        raise ModelError(
            "what this model remembers cannot go to another pool: ranks along pipe have some of its layers each; use "
            "tensor, or have what reads and what goes on from there in one pool"
        )
    if heads == kv.whole:
        return kv
    counts = [Cut(at, axis.size).share(kv.whole) for at in range(axis.size)]
    every = torch.cat(gathered(axis, kv.data.movedim(2, 0), counts))  # [N, L, 2, room, H]
    return KV(Slabs(), None, every.movedim(0, 2).unsqueeze(2).contiguous())


def part_of(kv: KV, mesh: Mesh) -> KV:
    """Of what came from another pool, the heads that this rank has: all of a network that has too few to share out."""
    axis = mesh.axis(TENSOR)
    if axis.size == 1 or kv.whole < axis.size:
        return kv
    start, stop = Cut(axis.index, axis.size).span(kv.whole)
    return KV(Slabs(), None, kv.data[:, :, start:stop].unsqueeze(2).contiguous(), kv.whole)
