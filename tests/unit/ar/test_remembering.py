"""What rows of a decoder remember: places in slabs that come and go, and attention of all rows in a few calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omnimuse.ar.kv import KV, LEAST, Reading, Sizes, Slabs
from omnimuse.ar.remembering import Conditions, turned, wanted, window
from omnimuse.ar.sampling import Sampling, next_token
from omnimuse.attention.layout import Layout
from omnimuse.core.params import GenerationParams
from omnimuse.core.plans import Grouped
from tests.second_device import ELSEWHERE, SecondDevice

CPU = torch.device("cpu")
SIZES = Sizes(layers=2, heads=2, dim=16, dtype=torch.float32)
QUERIES = 4
LENGTHS = (1, 7, 64, 65, 70, 128, 129, 300, 300, 9)
"""Tokens that the rows of a test have read before."""


def filled(slabs: Slabs, length: int) -> KV:
    """The memory of a row that has read so many tokens, which are known by their number."""
    kv = KV(slabs, slabs.take(SIZES, length + 1, CPU), Grouped(QUERIES, SIZES.heads))
    chance = torch.Generator().manual_seed(length)
    kv.data[:, :, :, :length] = torch.randn(SIZES.layers, 2, SIZES.heads, length, SIZES.dim, generator=chance)
    return kv


def said(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [1, N, H], and keys and values [1, heads of keys, H], of the token that follows."""
    chance = torch.Generator().manual_seed(1000 + length)
    return tuple(
        torch.randn(1, heads, SIZES.dim, generator=chance).to(SIZES.dtype)
        for heads in (QUERIES, SIZES.heads, SIZES.heads)
    )  # type: ignore[return-value]


def seen(memories: Sequence[KV], lengths: Sequence[int], layer: int = 1) -> Tensor:
    """What rows of one token each see, all in one forward, [R, N H]."""
    rows = [
        Reading(torch.zeros(1, dtype=torch.int64), length, kv) for kv, length in zip(memories, lengths, strict=True)
    ]
    q, k, v = (torch.stack(parts) for parts in zip(*map(said, lengths), strict=True))
    cond = Conditions.of(rows, Layout((1,) * len(rows)), torch.ones(1), torch.zeros(1))
    return cond.attend(layer, q, k, v)[:, 0]


def expected(kv: KV, length: int, layer: int = 1) -> Tensor:
    """The same of one row, by attention to exactly what it has read."""
    q, k, v = said(length)
    keys, values = (
        torch.cat([old[:, :length], new.transpose(0, 1)], 1)[None]
        for old, new in zip(kv.data[layer], (k, v), strict=True)
    )
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, enable_gqa=True).flatten()


@pytest.fixture(params=[1, 2, 3, 4], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("queries", "heads"), [(4, 2), (4, 4), (6, 2), (7, 1), (4, 1), (1, 1)])
def test_rows_that_attend_together_see_what_each_would_see_alone_to_the_bit(
    queries: int, heads: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("QUERIES", queries), ("SIZES", replace(SIZES, heads=heads, dtype=dtype))):
        monkeypatch.setattr(sys.modules[__name__], name, value)
    slabs = Slabs()
    memories = [filled(slabs, length) for length in LENGTHS]
    alone = [seen([filled(Slabs(), length)], [length])[0] for length in LENGTHS]
    for order in (range(10), (9, 3, 1, 4), (0, 8, 7), (5,), (2, 6, 9, 0, 1)):
        found = seen([memories[i] for i in order], [LENGTHS[i] for i in order])
        for number, row in zip(order, found, strict=True):
            assert torch.equal(row, alone[number]), f"the row of {LENGTHS[number]} tokens among {tuple(order)}"


def test_attention_to_a_part_of_a_slab_is_attention_to_what_was_read() -> None:
    for length in LENGTHS:
        kv = filled(Slabs(), length)
        torch.testing.assert_close(seen([kv], [length])[0], expected(filled(Slabs(), length), length))
        _, key, value = said(length)
        assert torch.equal(kv.data[1, :, :, length], torch.cat([key, value])), "it remembers this token, too"


def test_a_product_that_is_filled_up_is_so_once_for_all_layers() -> None:
    kv, (q, k, v) = filled(Slabs(), 9), said(9)
    rows = [Reading(torch.zeros(1, dtype=torch.int64), 9, kv)]
    cond = Conditions.of(rows, Layout((1,)), torch.ones(1), torch.zeros(1))
    found = cond.attend(1, *(part.expand(4, 1, -1, -1) for part in (q, k, v)))
    assert found.shape[:2] == (4, 1)
    assert torch.equal(found[0, 0], seen([filled(Slabs(), 9)], [9])[0])


def test_the_likeliest_tokens_of_all_rows_are_those_that_each_would_take_alone() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    likeliest = logits.argmax(-1).tolist()
    greedy = replace(Sampling.of(GenerationParams(temperature=0, min_tokens=5), {}), ends=(likeliest[1], likeliest[4]))
    held = [greedy, greedy, replace(greedy, suppressed=(likeliest[2],)), greedy, greedy, replace(greedy, temperature=1)]
    written = (9, 0, 0, 9, 9, 9)
    kv = filled(Slabs(), 7)
    forbidden = [(how.forbidden(count),) if how.greedy else () for how, count in zip(held, written, strict=True)]
    rows = [Reading([1], 7, kv, forbidden=each) for each in forbidden]
    found = wanted(rows, logits.clone())
    for each, mine, how, count in zip(found[:5], logits, held, written, strict=False):
        assert each.shape == (1,) and each.device == CPU
        assert int(each) == next_token(mine, (), count, how, torch.Generator())
    assert len({each.untyped_storage().data_ptr() for each in found[:5]}) == 1, "all come in one transfer"
    assert int(found[1]) != likeliest[1] and int(found[2]) != likeliest[2] and int(found[4]) == likeliest[4]
    assert torch.equal(found[5], logits[5]), "who draws by chance is given all"


def test_what_rows_choose_from_by_chance_comes_in_one_transfer() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    rows = [Reading([1], 7, filled(Slabs(), 7)) for _ in logits]
    with SecondDevice() as device:
        there = logits.to(ELSEWHERE)
        device.waits.clear()
        found = wanted(rows, there)
        assert len(device.waits) == 1
        assert all(torch.equal(each, mine) for each, mine in zip(found, logits, strict=True))


def test_a_row_that_was_moved_or_has_more_room_sees_the_same() -> None:
    slabs = Slabs()
    for length in (7, 300):
        kv = filled(slabs, length)
        whole = seen([kv], [length])
        assert torch.equal(seen([kv.to(CPU)], [length]), whole)
        assert torch.equal(seen([kv.with_room(2000), filled(slabs, 9)], [length, 9])[:1], whole)
        assert torch.equal(seen([kv.to(CPU).with_room(2000)], [length]), whole)


def test_a_place_is_free_when_its_row_has_gone_and_the_memory_when_all_have() -> None:
    slabs = Slabs()
    rows = [filled(slabs, 9) for _ in range(3)]
    slab = rows[0].place.slab if rows[0].place is not None else None
    assert slab is not None
    assert [row.slab[1] for row in rows] == [0, 1, 2]
    assert slab.places == 4, "they double"
    rows[1] = rows[1].to(CPU)
    assert filled(slabs, 5).slab[1] == 1
    rows.clear()
    assert slab.places == 0
    assert slab.data.nbytes == 0


def test_numbers_that_are_none_do_not_reach_the_next_row_at_their_place() -> None:
    slabs = Slabs()
    first, stays = filled(slabs, 9), filled(slabs, 9)
    assert stays.slab[1] == 1
    first.data.fill_(torch.nan)
    del first
    row = filled(slabs, 9)
    assert row.slab[1] == 0
    assert torch.equal(seen([row], [9]), seen([filled(Slabs(), 9)], [9]))


@pytest.mark.parametrize("length", [1, 64, 65, 256, 257, 1000, 1025, 5000, 40_000])
def test_a_row_looks_at_all_it_has_read_and_at_little_more(length: int) -> None:
    assert length <= window(length) < max(length + LEAST, 1.25 * length)
    room = Slabs().take(SIZES, length, CPU).slab.room
    assert window(length) <= room < max(LEAST + 1, 2 * length)


def test_what_a_token_takes_is_what_the_memory_of_a_token_takes() -> None:
    assert SIZES.empty(1, 1, torch.device("meta")).nbytes == SIZES.token_bytes


@dataclass(frozen=True)
class Whole(Reading):
    """A row whose tokens see one another all, and which may be kept or not."""

    causal: bool = False
    keep: bool = True


def read(count: int, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """What prompts of `count` tokens see who are read in one forward, each [S, N H], and what each then remembers."""
    slabs, chance = Slabs(), [torch.Generator().manual_seed(number) for number in numbers]
    memories = [KV(slabs, slabs.take(SIZES, count, CPU), Grouped(QUERIES, SIZES.heads)) for _ in numbers]
    rows = [Reading([0] * count, 0, kv) for kv in memories]
    q, k, v = (
        torch.stack([torch.randn(count, heads, SIZES.dim, generator=each) for each in chance])
        for heads in (QUERIES, SIZES.heads, SIZES.heads)
    )
    cond = Conditions.of(rows, Layout((count,) * len(rows)), torch.ones(1), torch.zeros(1))
    with patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as calls:
        found = cond.attend(1, q, k, v)
    assert calls.call_count == 1
    return [(found[i], memories[i].data[1, :, :, :count].clone()) for i in range(len(rows))]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("count", [2, 5, 13, 17, 64, 128])
def test_prompts_of_one_length_share_a_call_and_see_what_each_would_see_alone_to_the_bit(
    count: int, heads: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("QUERIES", heads), ("SIZES", replace(SIZES, heads=heads))):
        monkeypatch.setattr(sys.modules[__name__], name, value)
    together = read(count, range(5))
    for number, (found, kept) in enumerate(together):
        [(alone, memory)] = read(count, [number])
        assert torch.equal(found, alone) and torch.equal(kept, memory)


@pytest.mark.parametrize("start", [0, 9])
@pytest.mark.parametrize("keep", [True, False])
def test_tokens_that_see_one_another_all_also_see_what_came_before_and_are_kept_if_they_are_to_be(
    start: int, keep: bool
) -> None:
    kv = filled(Slabs(), 64)
    before, count = kv.data.clone(), 5
    q, k, v = (torch.cat([said(number)[part] for number in range(count)]) for part in range(3))
    row = Whole(torch.zeros(count, dtype=torch.int64), start, kv, keep=keep)
    cond = Conditions.of([row], Layout((count,)), torch.ones(1), torch.zeros(1))
    found = cond.attend(1, q[None], k[None], v[None])[0]
    keys, values = (
        torch.cat([old[:, :start], new.transpose(0, 1)], 1)[None] for old, new in zip(before[1], (k, v), strict=True)
    )
    wanted = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, enable_gqa=True)[0]
    assert torch.allclose(found, wanted.transpose(0, 1).flatten(1), atol=1e-6)
    assert torch.equal(kv.data, before) is not keep
    if keep:
        assert torch.equal(kv.data[1, 0, :, start : start + count], k.transpose(0, 1))


def test_of_a_head_as_many_numbers_turn_as_there_are_angles_for() -> None:
    x, angles = torch.randn(1, 3, 2, 8), torch.rand(1, 3, 1, 2)
    cond = Conditions(Layout((3,)), angles.cos(), angles.sin(), ())
    found = turned(x, *cond.turns)
    assert torch.equal(found[..., 4:], x[..., 4:])
    assert torch.equal(found[..., :4], turned(x[..., :4], *cond.turns))
    pairs = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(found[..., :4], torch.cat([pairs.real, pairs.imag], dim=-1))


def test_rows_may_go_while_a_place_is_made_ready_for_the_next() -> None:
    """As when garbage is collected then."""
    slabs = Slabs()
    rows = [filled(slabs, 9) for _ in range(4)]
    del rows[3:]

    class Collecting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            rows.clear()
            return func(*args, **(kwargs or {}))

    with Collecting():
        place = slabs.take(SIZES, 8, CPU)
    assert place.slab.data.shape[2] > place.index
    assert not place.slab.data[:, :, place.index].any()
