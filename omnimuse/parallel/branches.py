"""The branches axis: each rank evaluates some rows, and afterwards every rank holds every row's outcome.

The runner calls `share` once per tick. Two exchanges: do we speak of the same rows, how did each row go and what does
its tensor look like; and the bytes. The first is between the CPUs, so that no host waits for its device in order to
read it; the bytes go from device to device. A failure is an outcome like any other, so no rank waits for a tensor that
will never come, and all ranks go on from the same bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.errors import EngineDeadError, ModelError
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.line import silent
from omnimuse.parallel.mesh import BRANCHES, Axis, Mesh

Outcome = Tensor | Exception
"""What became of a row: its prediction, or why there is none."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)  # the last of tokens
_MAX_DIMS = 6
_TENSOR, _FAILURE = 1, 2
_FIELDS = 4 + _MAX_DIMS  # kind, bytes, dtype, dims, shape...
MOST = 32
"""Rows of a rank of which the first exchange tells; of more, another one tells the rest."""


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
        headers = _headers(axis, [header for header, _ in parts.values()], owners)
        bodies = _bodies(axis, {i: body for i, (_, body) in parts.items()}, headers, owners)
    except RuntimeError as error:
        raise silent(error) from error
    return [mine[i] if i in mine else _unpacked(headers[i], body, device) for i, body in enumerate(bodies)]


def _outcome(owned: Mapping[int, Outcome], row: int, owner: int) -> Outcome:
    """This rank's outcome of a row of its own, in a form that can be sent."""
    outcome = owned.get(row)
    if outcome is None:
        return ModelError(f"rank {owner} was to evaluate row {row} and did not")
    if isinstance(outcome, Tensor) and (outcome.dtype not in _DTYPES or outcome.dim() > _MAX_DIMS):
        return ModelError(
            f"a prediction {outcome.dtype} {tuple(outcome.shape)} cannot be shared by ranks; "
            f"allowed are floating dtypes, int64 and at most {_MAX_DIMS} axes"
        )
    return outcome


def _headers(axis: Axis, mine: Sequence[Sequence[int]], owners: Sequence[int]) -> list[list[int]]:
    """The header of every row, of which `mine` are those of this rank's, in order.

    Everybody has the same rows in the same order, or everybody raises: later exchanges would hang.
    """
    here = [len(owners), zlib.crc32(bytes(owners))]
    told = _told(axis, [*here, *_flat(mine[:MOST], MOST)])
    if any(each[:2] != here for each in told):
        counts = ", ".join(str(each[0]) for each in told)
        raise EngineDeadError(f"the ranks disagree about the rows of this tick ({counts}); start the engine again")
    tables = [each[2:] for each in told]
    longest = max((owners.count(index) for index in range(axis.size)), default=0)
    if longest > MOST:
        rest = _told(axis, _flat(mine[MOST:], longest - MOST))
        tables = [one + two for one, two in zip(tables, rest, strict=True)]
    found, taken = [], [0] * axis.size
    for owner in owners:
        start = taken[owner] * _FIELDS
        found.append(tables[owner][start : start + _FIELDS])
        taken[owner] += 1
    return found


def _flat(headers: Sequence[Sequence[int]], places: int) -> list[int]:
    numbers = [number for header in headers for number in header]
    return numbers + [0] * (places * _FIELDS - len(numbers))


def _told(axis: Axis, numbers: Sequence[int]) -> list[list[int]]:
    """What every rank says in as many numbers."""
    here = torch.tensor(numbers, device="cpu")
    seen = [torch.empty_like(here) for _ in range(axis.size)]
    dist.all_gather(seen, here, group=axis.control)
    return [each.tolist() for each in seen]


def _bodies(
    axis: Axis, mine: Mapping[int, Tensor], headers: Sequence[Sequence[int]], owners: Sequence[int]
) -> list[Tensor]:
    """The bytes of every row: each rank sends all of its rows at once."""
    rows = [[i for i, owner in enumerate(owners) if owner == index] for index in range(axis.size)]
    sizes = [[headers[i][1] for i in theirs] for theirs in rows]
    totals = [sum(each) for each in sizes]
    if not max(totals):
        return [torch.empty(0, dtype=torch.uint8, device=axis.device) for _ in owners]
    joined = [mine[i] for i in rows[axis.index]]
    flat = torch.cat(joined) if joined else torch.empty(0, dtype=torch.uint8, device=axis.device)  # [bytes]
    bodies: dict[int, Tensor] = {}
    for theirs, lengths, every in zip(rows, sizes, gathered(axis, flat, totals), strict=True):
        bodies.update(zip(theirs, every.split(lengths), strict=True))
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
