"""What is counted of the memory that something takes: every tensor on the CPU once, wherever its owner keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from omnimuse.ar.kv import KV, Slabs
from omnimuse.core.plans import Grouped
from omnimuse.pipeline.state import Parked
from omnimuse.pipeline.taken import taken

ELSEWHERE = torch.device("meta")


def bytes_of(size: int, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8, device=device)


@dataclass
class Record:
    """As slots hold them."""

    part: Any
    name: str = "words"


WHOLE = bytes_of(100)
REMEMBERED = KV(Slabs(), None, Grouped(1, 1), torch.ones(1, 2, 1, 1, 64, 4))
KEPT = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("things", "size"),
    [
        pytest.param([WHOLE, bytes_of(5)], 105, id="several"),
        pytest.param([WHOLE[:1], WHOLE[50:]], 100, id="pieces of one memory, which is kept as a whole"),
        pytest.param([bytes_of(7, "meta")], 0, id="on another device"),
        pytest.param([Parked(bytes_of(9), ELSEWHERE)], 9, id="parked"),
        pytest.param([REMEMBERED, Parked(REMEMBERED, ELSEWHERE)], 2 * 64 * 4 * 4, id="what rows remember"),
        pytest.param([{"a": [bytes_of(1)], "b": ({bytes_of(2)}, frozenset([bytes_of(4)]))}], 7, id="in containers"),
        pytest.param([Record(SimpleNamespace(mine=Record(bytes_of(3))))], 3, id="in what an owner keeps to itself"),
        pytest.param([KEPT, Record(KEPT), nn.Linear, None, 5, "words"], 0, id="weights are not what a state takes"),
    ],
)
def test_every_tensor_on_the_cpu_counts_once(things: list[Any], size: int) -> None:
    assert taken(*things) == size


def test_owners_of_each_other_are_counted_to_an_end() -> None:
    one, other = Record(bytes_of(3)), SimpleNamespace(back=None)
    other.back, one.part = one, [one.part, other]
    assert taken(one, other) == 3
