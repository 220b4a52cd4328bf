"""Failing together: what ranks tell each other when something went wrong, and only then.

A rank that fails alone must not go on alone: the others wait for it in the midst of a forward, or would take what it
sends next for something else. So whoever fails says at what, and hears whether the others failed at the same. If so,
only that request is over; if not, or if nobody answers in time, the engine is, and whoever drives it starts a new one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist

from omnimuse.core.errors import EngineDeadError
from omnimuse.parallel.mesh import ALL, WORK, Mesh

WORDS = 1000
"""Bytes of a message, at most."""


def agree_on_forward(mesh: Mesh, what: str, failure: Exception) -> None:
    """Return if every rank that shares this forward failed at `what`, too; EngineDeadError otherwise."""
    axis = mesh.axis(WORK)
    if axis.size > 1:
        _agree(axis.control, axis.size, what, failure)


def agree_on_stage(mesh: Mesh, what: str, failure: Exception) -> None:
    """The same for what all ranks do alike, outside forwards."""
    if mesh.size > 1:
        _agree(mesh.alarm, mesh.size, what, failure)


def agree_on_start(mesh: Mesh, failure: Exception | None) -> None:
    """Every rank says whether it could be built. EngineDeadError if another one could not, with its words."""
    try:
        every = words_of_all(mesh, failure)
    except RuntimeError as error:
        if failure is not None:
            return  # whoever calls tells it; the others ended for the same reason, perhaps
        raise EngineDeadError(
            f"a rank is gone before the engine started, or takes longer to load than ranks wait ({error}); look at "
            "what it said, or allow more: ParallelConfig(wait=SECONDS), --rank-wait"
        ) from error
    for rank, text in enumerate(every):
        if text and failure is None:
            raise EngineDeadError(f"rank {rank} could not start: {text}; mend that, and start the engine again")


def words_of_all(mesh: Mesh, failure: Exception | None) -> list[str]:
    """What failed on every rank, in words, empty where nothing did; on one rank nobody is asked. RuntimeError if one
    does not answer.
    """
    if mesh.size == 1:
        return ["" if failure is None else str(failure)]
    return said_by_all(mesh, "" if failure is None else f"{type(failure).__name__}: {failure}")


def said_by_all(mesh: Mesh, said: str) -> list[str]:
    """What every rank says, this one `said`; where there is nobody to talk to, that alone."""
    if (control := mesh.axis(ALL).control) is None:
        return [said]
    words = said.encode()[:WORDS]
    here = torch.zeros(WORDS, dtype=torch.uint8)
    here[: len(words)] = torch.frombuffer(bytearray(words), dtype=torch.uint8) if words else here[:0]
    every = [torch.empty_like(here) for _ in range(mesh.size)]
    dist.all_gather(every, here, group=control)
    return [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in every]


def most_of_all(mesh: Mesh, numbers: Sequence[int]) -> list[int]:
    """The largest that any rank has of each of these numbers, where there are others to talk to; EngineDeadError if
    one is gone.
    """
    if (control := mesh.axis(ALL).control) is None:
        return [int(number) for number in numbers]
    most = torch.tensor([int(number) for number in numbers])
    try:
        dist.all_reduce(most, dist.ReduceOp.MAX, group=control)
    except RuntimeError as error:
        raise EngineDeadError(f"a rank is gone ({error}); start the engine again") from error
    return [int(number) for number in most]


def trouble_of_all(mesh: Mesh, failure: Exception | None) -> str:
    """The same in one text, which says which rank it was, if there are several; EngineDeadError if one is gone."""
    try:
        every = words_of_all(mesh, failure)
    except RuntimeError as error:
        raise EngineDeadError(f"a rank is gone ({error}); start the engine again") from error
    return "; ".join(f"rank {rank}: {text}" if len(every) > 1 else text for rank, text in enumerate(every) if text)


def _agree(group: dist.ProcessGroup | None, size: int, what: str, failure: Exception) -> None:
    here = torch.tensor([zlib.crc32(what.encode())])
    every = [torch.empty_like(here) for _ in range(size)]
    try:
        dist.all_gather(every, here, group=group)
    except RuntimeError as error:
        raise EngineDeadError(
            f"a rank failed and the others did not, hang or are gone ({failure}; {error}); start the engine again"
        ) from error
    if any(not torch.equal(each, here) for each in every):
        raise EngineDeadError(f"the ranks failed at different things (here: {failure}); start the engine again")
