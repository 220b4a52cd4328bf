"""What ranks send one another: bytes from the leader, and tensors of which every rank has a part.

Requests and objects are never pickled. Every rank of a group must call in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.errors import EngineDeadError
from omnimuse.parallel.mesh import ALL, Axis, Mesh


def broadcast_bytes(mesh: Mesh, payload: bytes | None) -> bytes:
    """What rank 0 passes as `payload`, on every rank; the others pass None. EngineDeadError if a rank is gone."""
    assert (payload is not None) == mesh.is_leader, "rank 0 passes the payload, the others pass None"
    if mesh.size == 1:
        assert payload is not None
        return payload
    length = torch.tensor([len(payload or b"")])
    try:
        dist.broadcast(length, src=0, group=mesh.control)
        body = torch.empty(int(length), dtype=torch.uint8)
        if payload:
            body = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        if len(body):
            dist.broadcast(body, src=0, group=mesh.control)
    except RuntimeError as error:
        raise _silent(error) from error
    return body.numpy().tobytes()


def meet(mesh: Mesh) -> None:
    """Wait until every rank is here. EngineDeadError if one is gone."""
    if mesh.size == 1:
        return
    try:
        dist.barrier(group=mesh.axis(ALL).control)
    except RuntimeError as error:
        raise _silent(error) from error


def _silent(error: RuntimeError) -> EngineDeadError:
    return EngineDeadError(f"the ranks can no longer talk ({error}); start the engine again")


def summed(axis: Axis, part: Tensor) -> Tensor:
    """The sum of every rank's `part`, to the same bits on every rank; `part` may be overwritten."""
    if axis.size > 1:
        part = part.contiguous()
        dist.all_reduce(part, group=axis.group)
    return part


def gathered(axis: Axis, part: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Every rank's [n, *] in order, where rank i has `counts[i]` of them; short ones travel padded."""
    return gathering(axis, part, counts)()


def gathering(axis: Axis, part: Tensor, counts: Sequence[int]) -> Callable[[], list[Tensor]]:
    """`gathered`, begun: what comes is there when the function that this returns has been called."""
    if axis.size == 1:
        return lambda: [part]
    longest = max(counts)
    mine = part.new_zeros(longest, *part.shape[1:])
    mine[: len(part)] = part
    every = [torch.empty_like(mine) for _ in counts]
    work = dist.all_gather(every, mine, group=axis.group, async_op=True)

    def finish() -> list[Tensor]:
        if work is not None:
            work.wait()
        return [each[:count] for each, count in zip(every, counts, strict=True)]

    return finish


def exchanged(axis: Axis, parts: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """What every rank sends this one, of shapes `sizes`; `parts` is what it sends to each of them, itself included."""
    if axis.size == 1:
        return list(parts)
    counts = [int(torch.Size(size).numel()) for size in sizes]
    sent = torch.cat([part.reshape(-1) for part in parts])
    received = sent.new_empty(sum(counts))
    dist.all_to_all_single(received, sent, counts, [part.numel() for part in parts], group=axis.group)
    return [each.view(tuple(size)) for each, size in zip(received.split(counts), sizes, strict=True)]


def passed_on(axis: Axis, part: Tensor, size: Sequence[int]) -> Tensor:
    """The tensor, of shape `size`, of the rank before this one; `part` goes to the one after it."""
    received, sent = part.new_empty(tuple(size)), part.contiguous()
    following, before = (axis.ranks[(axis.index + step) % axis.size] for step in (1, -1))
    operations = []
    if sent.numel():
        operations.append(dist.P2POp(dist.isend, sent, following, axis.group))
    if received.numel():
        operations.append(dist.P2POp(dist.irecv, received, before, axis.group))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    return received
