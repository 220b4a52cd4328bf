"""A layout loses no token and mixes no rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5).map(tuple)


def parts_of(lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """Rows of [S_i, 3] whose first value is the row's number."""
    return [
        torch.full((length, 3), float(row)) + torch.arange(length)[:, None] / 10 for row, length in enumerate(lengths)
    ]


@given(LENGTHS)
def test_unpacking_returns_what_was_packed(lengths):
    layout, parts = Layout(lengths), parts_of(lengths)
    for before, after in zip(parts, layout.unpack(layout.pack(parts)), strict=True):
        assert torch.equal(before, after)


@given(LENGTHS, st.data())
def test_taking_rows_is_packing_only_those_rows(lengths, data):
    rows = data.draw(
        st.permutations(range(len(lengths))).flatmap(lambda p: st.integers(1, len(p)).map(lambda n: p[:n]))
    )
    layout, parts = Layout(lengths), parts_of(lengths)
    taken = layout.take(layout.pack(parts), rows)
    assert torch.equal(taken, layout.select(rows).pack([parts[row] for row in rows]))


@given(LENGTHS)
def test_a_vector_per_row_reaches_exactly_the_tokens_of_its_row(lengths):
    layout = Layout(lengths)
    zeros = layout.pack([torch.zeros(length, 2) for length in lengths])
    numbers = torch.arange(len(lengths), dtype=torch.float32)[:, None].expand(-1, 2)
    for row, part in enumerate(layout.unpack(zeros + layout.expand(numbers))):
        assert (part == row).all()


@given(LENGTHS)
def test_slices_cut_the_concatenated_tokens_into_rows(lengths):
    joined = torch.cat(parts_of(lengths))
    for part, place in zip(parts_of(lengths), Layout(lengths).slices(), strict=True):
        assert torch.equal(joined[place], part)


def test_equal_rows_are_stacked_and_unequal_rows_laid_end_to_end():
    assert Layout((4, 4)).pack(parts_of((4, 4))).shape == (2, 4, 3)
    assert Layout((4, 2)).pack(parts_of((4, 2))).shape == (1, 6, 3)


def test_the_common_length_is_known_and_unequal_rows_have_none():
    assert (Layout((4, 4)).length, Layout((4, 2)).length) == (4, 0)


@pytest.mark.parametrize("rows", [[1], [1, 0]])
def test_rows_that_are_taken_are_a_copy(rows):
    layout = Layout((4, 4))
    packed = layout.pack(parts_of((4, 4)))
    taken = layout.take(packed, rows)
    assert taken.storage_offset() == 0
    packed.zero_()
    assert taken[0, 0, 0] == 1


def test_rows_left_equal_by_a_selection_are_stacked_again():
    layout = Layout((4, 2, 4))
    assert layout.take(layout.pack(parts_of(layout.lengths)), [0, 2]).shape == (2, 4, 3)


@pytest.mark.parametrize("lengths", [(), (3, 0)])
def test_a_layout_without_rows_or_with_an_empty_row_is_refused(lengths):
    with pytest.raises(ValueError, match="at least one row"):
        Layout(lengths)


def test_packing_parts_of_other_lengths_is_refused_with_both_lengths():
    with pytest.raises(ValueError, match=r"\[2\].*\(3,\)"):
        Layout((3,)).pack([torch.zeros(2, 1)])


CUT = (Layout((5, 9), ((2, 3), (8, 1))), Layout((7,), ((7,),)), Layout((4, 4)), Layout((6, 6), ((4, 2), (3, 3))))


@pytest.mark.parametrize("layout", CUT)
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_parts_of_rows_joined_again_are_the_rows_and_every_part_has_its_share_of_every_segment(layout, parts):
    packed = layout.pack(
        [torch.arange(length * 2.0).view(length, 2) + 100 * i for i, length in enumerate(layout.lengths)]
    )
    cuts = [layout.cut(Cut(at, parts)) for at in range(parts)]
    shares = [layout.share(packed, Cut(at, parts)) for at in range(parts)]
    assert torch.equal(layout.join(shares), packed)
    for at, (cut, share) in enumerate(zip(cuts, shares, strict=True)):
        assert cut.everywhere == tuple(each.lengths for each in cuts)
        assert cut.pack(cut.unpack(share)).shape == share.shape
        for whole, here in zip(layout.runs, cut.runs, strict=True):
            assert [Cut(at, parts).share(length) for length in whole] == list(here)


def test_rows_are_stacked_on_a_rank_only_if_they_are_on_all():
    cut = Layout((5, 5), ((3, 2), (4, 1))).cut(Cut(0, 2))
    assert cut.lengths == (3, 3) and not cut.dense  # on the other rank they have 2 and 2
    assert not Layout((5, 4)).cut(Cut(1, 2)).dense
    assert Layout((5, 5), ((3, 2), (3, 2))).cut(Cut(0, 2)).dense


def test_selected_rows_of_a_part_are_that_part_of_the_selected_rows():
    layout = Layout((5, 9, 4), ((2, 3), (8, 1), (4, 0)))
    assert layout.cut(Cut(1, 2)).select([2, 0]) == layout.select([2, 0]).cut(Cut(1, 2))


def test_segments_that_do_not_make_up_their_rows_are_refused():
    with pytest.raises(ValueError, match="do not make up"):
        Layout((5,), ((2, 2),))
