"""A layout loses no token and mixes no rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnimuse.attention.layout import Layout

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
