"""The branches axis: each rank evaluates some rows, and afterwards every rank holds every row's outcome.

The runner calls `share` once per tick. Three exchanges: do we speak of the same rows; how did each row go and what
does its tensor look like; the bytes. The first two are between the CPUs, so that no host waits for its device in order
to read them; the bytes go from device to device. A failure is an outcome like any other, so no rank waits for a tensor
that will never come, and all ranks go on from the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.errors import EngineDeadError, ModelError
from omnimuse.parallel.mesh import BRANCHES, Axis, Mesh

Outcome = Tensor | Exception
"""What became of a row: its prediction, or why there is none."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_DIMS = 6
_TENSOR, _FAILURE = 1, 2
_FIELDS = 4 + _MAX_DIMS  # kind, bytes, dtype, dims, shape...


def share(
    mesh: Mesh, owned: Mapping[int, Outcome], owners: Sequence[int], device: torch.device | str = "cpu"
) -> list[Outcome]:
    """The outcome of every row, on every rank; tensors are bit for bit the same everywhere and lie on `device`.

    `owners[i]` is the index on the branches axis of the rank that evaluated row i; `owned` holds this rank's outcomes
    by row. Another rank's exception arrives as a ModelError with its words, as does a row that its owner left out.
    EngineDeadError if the ranks disagree about the rows or one of them is gone.
    """
    axis = mesh.axis(BRANCHES)
    mine = {i: _outcome(owned, i, owner) for i, owner in enumerate(owners) if owner == axis.index}
    if axis.size == 1:
        return [mine[i] for i in range(len(owners))]
    parts = {i: _packed(outcome, axis.device) for i, outcome in mine.items()}
    try:
        _agree(axis, owners)
        headers = _headers(axis, {i: header for i, (header, _) in parts.items()}, len(owners))
        bodies = _bodies(axis, {i: body for i, (_, body) in parts.items()}, headers, owners)
    except RuntimeError as error:
        raise EngineDeadError(f"the ranks can no longer talk ({error}); start the engine again") from error
    return [mine[i] if i in mine else _unpacked(headers[i], body, device) for i, body in enumerate(bodies)]


def _outcome(owned: Mapping[int, Outcome], row: int, owner: int) -> Outcome:
    """This rank's outcome of a row of its own, in a form that can be sent."""
    outcome = owned.get(row)
    if outcome is None:
        return ModelError(f"rank {owner} was to evaluate row {row} and did not")
    if isinstance(outcome, Tensor) and (outcome.dtype not in _DTYPES or outcome.dim() > _MAX_DIMS):
        return ModelError(
            f"a prediction {outcome.dtype} {tuple(outcome.shape)} cannot be shared by ranks; "
            f"allowed are floating dtypes and at most {_MAX_DIMS} axes"
        )
    return outcome


def _agree(axis: Axis, owners: Sequence[int]) -> None:
    """Everybody has the same rows in the same order, or everybody raises: later exchanges would hang."""
    here = torch.tensor([len(owners), zlib.crc32(bytes(owners))], device="cpu")  # [2]
    seen = [torch.empty_like(here) for _ in range(axis.size)]
    dist.all_gather(seen, here, group=axis.control)
    if any(not torch.equal(each, here) for each in seen):
        counts = ", ".join(str(int(each[0])) for each in seen)
        raise EngineDeadError(f"the ranks disagree about the rows of this tick ({counts}); start the engine again")


def _headers(axis: Axis, mine: Mapping[int, Sequence[int]], rows: int) -> list[list[int]]:
    table = torch.zeros(rows, _FIELDS, dtype=torch.int64, device="cpu")  # a row is zero but at its owner
    for i, header in mine.items():
        table[i] = torch.tensor(header, device="cpu")
    dist.all_reduce(table, op=dist.ReduceOp.SUM, group=axis.control)
    return [[int(value) for value in row] for row in table.tolist()]


def _bodies(
    axis: Axis, mine: Mapping[int, Tensor], headers: Sequence[Sequence[int]], owners: Sequence[int]
) -> list[Tensor]:
    """The bytes of every row: each owner sends all of its rows at once."""
    bodies: dict[int, Tensor] = {}
    for index, rank in enumerate(axis.ranks):
        rows = [i for i, owner in enumerate(owners) if owner == index]
        sizes = [headers[i][1] for i in rows]
        if not sum(sizes):
            joined = torch.empty(0, dtype=torch.uint8, device=axis.device)
        elif index == axis.index:
            joined = torch.cat([mine[i] for i in rows])  # [bytes]
        else:
            joined = torch.empty(sum(sizes), dtype=torch.uint8, device=axis.device)
        if len(joined):
            dist.broadcast(joined, src=rank, group=axis.group)
        bodies.update(zip(rows, joined.split(sizes), strict=True))
    return [bodies[i] for i in range(len(owners))]


def _packed(outcome: Outcome, device: torch.device) -> tuple[list[int], Tensor]:
    """An outcome as a header and bytes."""
    if isinstance(outcome, Exception):
        words = str(outcome) if isinstance(outcome, ModelError) else f"{type(outcome).__name__}: {outcome}"
        body = torch.tensor([*words.encode()], dtype=torch.uint8, device=device)  # [bytes]
        return [_FAILURE, len(body), *[0] * (_FIELDS - 2)], body
    body = outcome.detach().contiguous().reshape(-1).view(torch.uint8).to(device)  # [bytes]
    shape = [*outcome.shape, *[0] * (_MAX_DIMS - outcome.dim())]
    return [_TENSOR, len(body), _DTYPES.index(outcome.dtype), outcome.dim(), *shape], body


def _unpacked(header: Sequence[int], body: Tensor, device: torch.device | str) -> Outcome:
    kind, _, dtype, dims, *shape = header
    if kind == _FAILURE:
        return ModelError(bytes(body.tolist()).decode())
    assert kind == _TENSOR
    # The copy starts at offset 0, as a view of wider numbers must.
    return body.clone().view(_DTYPES[dtype]).reshape(shape[:dims]).to(device)
