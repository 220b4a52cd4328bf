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
    axis = mesh.axis(TENSOR)
    if mesh.axis(PIPE).size > 1:
        raise ModelError(
            "what this model remembers cannot go to another pool: ranks along pipe have some of its layers each; use "
            "tensor, or have what reads and what goes on from there in one pool"
        )
    if kv.data.shape[2] == kv.whole.keys:
        return kv
    spans = [kv.whole.spans(Cut(at, axis.size))[1] for at in range(axis.size)]
    every = gathered(axis, kv.data.movedim(2, 0), [stop - start for start, stop in spans])
    firsts = dict(zip(reversed(spans), reversed(every), strict=True))  # several ranks may have the same ones
    heads = torch.cat([firsts[span] for span in sorted(firsts)])  # [N, L, 2, room, H]
    return KV(Slabs(), None, kv.whole, heads.movedim(0, 2).unsqueeze(2).contiguous())


def part_of(kv: KV, mesh: Mesh) -> KV:
    """Of what came from another pool, the heads that this rank has: all of a network that has too few to share out."""
    axis = mesh.axis(TENSOR)
    if axis.size == 1 or kv.whole.queries < axis.size:
        return kv
    _, (start, stop) = kv.whole.spans(Cut(axis.index, axis.size))
    return KV(Slabs(), None, kv.whole, kv.data[:, :, start:stop].unsqueeze(2).contiguous())
