"""What the leader tells everybody, and where all wait for each other; over the control group, which carries bytes.

The engine sends each tick's plan with it. Tensors and objects are never pickled. Every rank calls in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from omnimuse.core.errors import EngineDeadError
from omnimuse.parallel.mesh import Mesh


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
        dist.barrier(group=mesh.control)
    except RuntimeError as error:
        raise _silent(error) from error


def _silent(error: RuntimeError) -> EngineDeadError:
    return EngineDeadError(f"the ranks can no longer talk ({error}); start the engine again")
