"""Products of few rows: a row has the same bits among as many others as there may be, whatever code multiplies it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnimuse.layers.few import LARGE, FewLinear, few_rows
from omnimuse.layers.steady import steady_heights, trial

SHAPES = {"small": (96, 64), "large": (520, 260)}


def made(outputs: int, inputs: int, *, bias: bool, may_pack: bool) -> tuple[nn.Linear, FewLinear]:
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    few = few_rows(linear.weight, linear.bias, may_pack=may_pack)
    assert few.heights, "no height is steady on this machine"
    return linear, FewLinear(linear, steady_heights(linear.weight, linear.bias), few)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("may_pack", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_is_multiplied_the_same_in_any_company(shape: str, may_pack: bool, bias: bool) -> None:
    outputs, inputs = SHAPES[shape]
    assert (outputs * inputs >= LARGE) == (shape == "large")
    linear, few = made(outputs, inputs, bias=bias, may_pack=may_pack)
    x = trial(150, inputs)[:, None]
    alone = torch.cat([few(row[None]) for row in x])
    torch.testing.assert_close(alone, F.linear(x, linear.weight, linear.bias))
    for begin, end in ((0, 2), (1, 4), (3, 19), (7, 40), (0, 64), (1, 150)):
        assert torch.equal(few(x[begin:end]), alone[begin:end])


def test_rows_of_several_tokens_and_one_that_is_no_row_are_multiplied_as_elsewhere() -> None:
    linear, few = made(*SHAPES["large"], bias=True, may_pack=True)
    x = trial(60, linear.in_features).view(2, 30, -1)
    torch.testing.assert_close(few(x), linear(x))
    assert torch.equal(few(x)[1], few(x[1:])[0])
    assert torch.equal(few(x[1, 4]), few(x)[1, 4]), "one by itself, too"


def test_weights_that_lie_elsewhere_are_packed_anew() -> None:
    linear, few = made(*SHAPES["large"], bias=False, may_pack=True)
    x = trial(1, linear.in_features)[None]
    once = few(x)
    few.unpack()
    assert torch.equal(few(x), once)
    few.weight = nn.Parameter(2 * linear.weight, requires_grad=False)
    assert torch.equal(few(x), 2 * FewLinear(linear, few.heights, few.few)(x))
