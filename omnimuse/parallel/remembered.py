"""What a decoder remembers, on its way between pools: whole there, while ranks have some heads or some layers each.

Every rank that has a part calls these alike.
"""

from __future__ import annotations

import torch

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.plans import Cut
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import PIPE, TENSOR, Mesh


def whole_of(kv: KV, mesh: Mesh) -> KV:
    """All heads and all layers of what is remembered here."""
    axis, deep = mesh.axis(TENSOR), mesh.axis(PIPE)
    data = here = kv.data  # [L, 2, N, room, H]
    if data.shape[2] < kv.whole.keys:
        spans = [kv.whole.spans(Cut(at, axis.size))[1] for at in range(axis.size)]
        every = gathered(axis, data.movedim(2, 0), [stop - start for start, stop in spans])
        firsts = dict(zip(reversed(spans), reversed(every), strict=True))  # several ranks may have the same ones
        data = torch.cat([firsts[span] for span in sorted(firsts)]).movedim(0, 2)
    layers = torch.cat(gathered(deep, torch.tensor([[kv.first, len(data)]]).to(data.device), [1] * deep.size)).tolist()
    if any(first for first, _ in layers):  # else every rank has all of them
        data = torch.cat(gathered(deep, data, [count for _, count in layers]))
    return kv if data is here else KV(Slabs(), None, kv.whole, data.unsqueeze(2).contiguous())


def part_of(kv: KV, mesh: Mesh) -> KV:
    """Of what came from another pool, the heads that this rank has: all of a network that has too few to share out.
    All layers are here, of which this rank goes on with its own.
    """
    axis = mesh.axis(TENSOR)
    if axis.size == 1 or kv.whole.queries < axis.size:
        return kv
    _, (start, stop) = kv.whole.spans(Cut(axis.index, axis.size))
    return KV(Slabs(), None, kv.whole, kv.data[:, :, start:stop].unsqueeze(2).contiguous())
