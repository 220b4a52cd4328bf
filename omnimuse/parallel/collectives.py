"""What ranks send one another: bytes from the leader, and tensors of which every rank has a part.

Requests and objects are never pickled. Every rank of a group must call in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from omnimuse.parallel.line import silent
from omnimuse.parallel.mesh import ALL, Axis, Mesh

LETTER, PREFIX = 4096, 8
"""Bytes that are sent at once, most plans whole, and those of them that say how long the whole is."""


def broadcast_bytes(mesh: Mesh, payload: bytes | None) -> bytes:
    """What rank 0 passes as `payload`, on every rank; the others pass None. EngineDeadError if a rank is gone."""
    assert (payload is not None) == mesh.is_leader, "rank 0 passes the payload, the others pass None"
    if mesh.size == 1:
        assert payload is not None
        return payload
    if mesh.line is not None:
        if payload is None:
            return mesh.line.hear()
        mesh.line.tell(payload)
        return payload
    return _sent(mesh.control, 0, payload)


def told(mesh: Mesh, source: int, payload: bytes | None) -> bytes:
    """What rank `source` passes as `payload`, on every rank; the others pass None. EngineDeadError if one is gone.

    Unlike a plan, it is waited for no longer than ranks wait for one another.
    """
    return _sent(mesh.axis(ALL).control, source, payload)


def told_tensor(mesh: Mesh, source: int, tensor: Tensor) -> Tensor:
    """The `tensor` of rank `source`, on every rank; the others pass an empty one like it, which is overwritten."""
    axis = mesh.axis(ALL)
    here = tensor.to(axis.device)
    try:
        dist.broadcast(here, src=source, group=axis.group)
    except RuntimeError as error:
        raise silent(error) from error
    return here.to(tensor.device)


def _sent(group: dist.ProcessGroup | None, source: int, payload: bytes | None) -> bytes:
    letter = bytearray(LETTER)
    if payload is not None:
        start = len(payload).to_bytes(PREFIX, "little") + payload[: LETTER - PREFIX]
        letter[: len(start)] = start
    try:
        dist.broadcast(torch.frombuffer(letter, dtype=torch.uint8), src=source, group=group)
        length = int.from_bytes(letter[:PREFIX], "little")
        rest = bytearray(length - (LETTER - PREFIX)) if length > LETTER - PREFIX else bytearray()
        if rest:
            if payload is not None:
                rest[:] = payload[LETTER - PREFIX :]
            dist.broadcast(torch.frombuffer(rest, dtype=torch.uint8), src=source, group=group)
    except RuntimeError as error:
        raise silent(error) from error
    return bytes(letter[PREFIX : PREFIX + length] + rest)


def meet(mesh: Mesh) -> None:
    """Wait until every rank is here. EngineDeadError if one is gone."""
    if mesh.size == 1:
        return
    try:
        dist.barrier(group=mesh.axis(ALL).control)
    except RuntimeError as error:
        raise silent(error) from error


def summed(axis: Axis, part: Tensor) -> Tensor:
    """The sum of every rank's `part`, to the same bits on every rank; `part` may be overwritten.

    Between CPUs it is the same wherever a number lies: gloo's own sum of three and more has an order for each place.
    """
    if axis.size == 1:
        return part
    if torch.compiler.is_compiling():  # code that is compiled knows exchanges that return what came
        assert axis.group is not None
        return functional.wait_tensor(functional.all_reduce(part, "sum", axis.group))
    part = part.contiguous()
    if axis.size > 2 and part.device.type == "cpu":
        every = [torch.empty_like(part) for _ in axis.ranks]
        dist.all_gather(every, part, group=axis.group)
        return reduce(Tensor.add_, every)
    dist.all_reduce(part, group=axis.group)
    return part


def greatest(axis: Axis, part: Tensor) -> Tensor:
    """The largest of every rank's numbers, place by place, on every rank; `part` may be overwritten. Where a rank has
    none, it is infinite: who compares would leave that out, or not, by the order in which it hears of both.
    """
    if axis.size == 1:
        return part
    part = part.masked_fill(part.isnan(), torch.inf)
    if torch.compiler.is_compiling():
        assert axis.group is not None
        return functional.wait_tensor(functional.all_reduce(part, "max", axis.group))
    part = part.contiguous()
    dist.all_reduce(part, dist.ReduceOp.MAX, group=axis.group)
    return part


def gathered(axis: Axis, part: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Every rank's [n, *] in order, where rank i has `counts[i]` of them; short ones travel padded."""
    if axis.size > 1 and torch.compiler.is_compiling():
        assert axis.group is not None
        longest = max(counts)
        mine = torch.cat([part, part.new_zeros(longest - counts[axis.index], *part.shape[1:])])
        every = functional.wait_tensor(functional.all_gather_tensor(mine, 0, axis.group))
        return [each[:count] for each, count in zip(every.split(longest), counts, strict=True)]
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
