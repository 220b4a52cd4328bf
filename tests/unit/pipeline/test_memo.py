"""The memo remembers by content, within its bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.pipeline.memo import Memo


def test_what_was_put_is_found_until_it_is_the_oldest_and_there_is_no_room() -> None:
    memo = Memo(limit=3000)
    for name in "abc":
        memo.put(name, (torch.zeros(256),))  # 1024 bytes and the entry's own
    assert memo.get("a") is None
    assert memo.get("b") is not None
    memo.put("d", (torch.zeros(256),))
    assert memo.get("c") is None, "b was used more recently"
    assert memo.get("b") is not None
    assert memo.bytes <= memo.limit


def test_what_is_larger_than_the_memo_is_not_remembered() -> None:
    memo = Memo(limit=1000)
    memo.put("small", (torch.zeros(1),))
    memo.put("big", (torch.zeros(10_000),))
    assert memo.get("big") is None
    assert memo.get("small") is not None and memo.bytes == 260, "nor does anything give way to it"


def test_what_is_remembered_already_counts_once_and_what_is_forgotten_no_more() -> None:
    memo = Memo(limit=3000)
    for _ in range(2):
        memo.put("a", (torch.zeros(256),))
    assert memo.bytes == 1280
    memo.clear()
    assert memo.bytes == 0


def test_every_tensor_of_a_slot_that_holds_several_is_counted() -> None:
    memo = Memo(limit=3000)
    memo.put("pictures", (torch.zeros(1), (torch.zeros(500), torch.zeros(500))))
    assert memo.get("pictures") is None
    memo.put("smaller", ((torch.zeros(250), torch.zeros(250)), None))
    assert memo.bytes == 2256


def test_where_memory_is_short_it_remembers_less_until_there_is_enough_again() -> None:
    memo = Memo(limit=3000)
    for name in "ab":
        memo.put(name, (torch.zeros(256),))
    memo.within(1500)
    assert memo.get("a") is None and memo.get("b") is not None
    memo.put("c", (torch.zeros(256),))
    assert memo.get("b") is None and memo.get("c") is not None
    memo.within(0)
    memo.put("d", (torch.zeros(256),))
    assert memo.bytes == 0
    memo.within(None)
    for name in "abc":
        memo.put(name, (torch.zeros(256),))
    assert memo.bytes == 2 * 1280


def test_what_somebody_present_has_anyway_stays_as_long_as_the_limit_lasts() -> None:
    memo, present = Memo(limit=3000), {"first", "second"}
    memo.put("a", (torch.zeros(256),), holder="first")
    memo.put("b", (torch.zeros(256),))
    memo.within(0, present)
    assert memo.get("b") is None and memo.get("a", "second") is not None
    present.remove("first")
    memo.put("c", (torch.zeros(256),), holder="second")
    memo.within(0, present)
    assert memo.bytes == 2 * 1280, "it is of whoever asked last"
    memo.put("d", (torch.zeros(256),), holder="second")
    assert memo.bytes <= memo.limit
    memo.leave("second")
    memo.within(0, present)
    assert memo.bytes == 0


def test_hits_are_counted_and_clearing_forgets() -> None:
    memo = Memo(limit=1000)
    memo.put("a", (None, torch.ones(1)))
    memo.get("a")
    memo.get("b")
    assert memo.hits == 1
    memo.clear()
    assert memo.get("a") is None


def test_what_a_record_holds_counts_as_well() -> None:
    @dataclass(frozen=True)
    class Seen:
        shown: Tensor
        kind: str = "image"

    memo = Memo(limit=1000)
    memo.put("small", ((Seen(torch.zeros(100)),),))
    assert memo.bytes == 400 + 256
    memo.put("large", (Seen(torch.zeros(1000)),))
    assert memo.get("large") is None, "it is larger than the whole memo"
