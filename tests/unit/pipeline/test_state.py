"""What a state holds, in other number formats or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.plans import Grouped
from omnimuse.models.bagel.reading import Piece
from omnimuse.pipeline.conversing import Brief
from omnimuse.pipeline.state import EXACT, changed, park, wake
from omnimuse.pipeline.stream import Stream


@dataclass(frozen=True)
class Record:
    """Something that a slot holds."""

    made: Tensor
    turns: Tensor = field(metadata=EXACT)


def narrow(part: Tensor | KV) -> Tensor | KV:
    return part.to(torch.bfloat16)


def test_fields_that_are_exact_stay_where_all_else_changes_its_format() -> None:
    here = torch.ones(2)
    kv = KV(Slabs(), None, Grouped(1, 1), torch.ones(1, 2, 1, 1, 64, 4))
    found = changed({"a": [Record(here, here)], "b": Stream([(here, kv)])}, narrow, exact=False)
    [record], [(row, memory)] = found["a"], found["b"].items
    assert (record.made.dtype, record.turns.dtype) == (torch.bfloat16, torch.float32)
    assert row.dtype == memory.data.dtype == torch.bfloat16 and memory.whole == kv.whole
    assert torch.equal(memory.data, kv.data.bfloat16())
    assert changed(Record(here, here), narrow).turns.dtype == torch.bfloat16, (
        "unless all is meant, as where it is parked"
    )
    assert torch.equal(wake(park(Record(here, here))).turns, here)


def test_angles_and_latents_of_what_is_read_are_exact() -> None:
    assert Brief.__dataclass_fields__["turns"].metadata == EXACT
    assert Piece.__dataclass_fields__["latents"].metadata == EXACT
