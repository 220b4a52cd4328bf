"""Products and activations that do not depend on where a row lies, or on how many others there are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from omnimuse.layers.kernels import Gated
from omnimuse.layers.steady import (
    ALONE,
    BETWEEN,
    HEIGHTS,
    LANES,
    SHARE,
    Product2d,
    SteadyActivation,
    SteadyGated,
    SteadyLinear,
    agreeing,
    cut,
    equal_rows,
    places,
    steady_heights,
    trial,
    whole_vectors,
)
from omnimuse.worker.steady import trial_weights


def test_rows_are_cut_into_tall_tiles_first_and_only_the_last_reaches_beyond() -> None:
    assert list(cut(1000, (512, 64, 8))) == [512, *[64] * 7, *[8] * 5]
    assert list(cut(3, (512, 64, 8))) == [8]
    assert list(cut(0, (8,))) == []
    for count in range(1, 700):
        assert 0 <= sum(cut(count, HEIGHTS)) - count < HEIGHTS[-1]


def test_with_heights_between_the_usual_ones_most_products_are_one_call() -> None:
    heights = tuple(sorted((*HEIGHTS, *BETWEEN), reverse=True))
    assert [places(count, heights) for count in (2, 60, 96, 100, 187, 192)] == [
        (8,),
        (64,),
        (96,),
        (96, 8),
        (192,),
        (192,),
    ]
    for count in range(1, 700):
        assert 0 <= sum(places(count, heights)) - count < heights[-1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [25, 64])  # rows of 25 floats begin at addresses that are not aligned
def test_a_row_of_a_product_is_the_same_wherever_it_lies(bias: bool, inputs: int) -> None:
    linear = nn.Linear(inputs, 49, bias=bias).requires_grad_(False)
    heights = steady_heights(linear.weight, linear.bias)
    assert heights, "no height is steady on this machine"
    steady = SteadyLinear(linear, heights)
    x = trial(700, inputs)
    whole = steady(x)
    assert torch.allclose(whole, F.linear(x, linear.weight, linear.bias), atol=1e-5)
    for begin, end in ((0, 1), (1, 4), (3, 100), (5, 517), (650, 700)):
        assert torch.equal(steady(x[begin:end]), whole[begin:end])
    assert torch.equal(steady(x.view(7, 100, inputs)), whole.view(7, 100, 49))
    assert set(steady.state_dict()) == set(linear.state_dict())


def test_patches_of_a_convolution_are_one_product_in_tiles_that_were_tried() -> None:
    convolution = Product2d(16, 32, 2, stride=2).requires_grad_(False)
    tokens, weight = trial(300, 64), convolution.weight.flatten(1)
    plain = convolution.product(tokens)
    assert torch.equal(plain, F.linear(tokens, weight, convolution.bias))
    convolution.heights = steady_heights(weight, convolution.bias)
    whole = convolution.product(tokens)
    assert torch.allclose(whole, plain, atol=1e-5)
    for begin, end in ((0, 1), (1, 7), (3, 14), (5, 217)):
        assert torch.equal(convolution.product(tokens[begin:end]), whole[begin:end])


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 12, 64])
def test_whole_vectors_are_shared_out_without_leaving_any_broken(threads: int) -> None:
    """By both of torch's rules: a thread has so many elements at least, or as many as any other."""
    for count in [*range(300), *range(SHARE - 200, SHARE + 200, 7), *range(0, 9 * SHARE, 1009), 64 * SHARE + 77]:
        pieces = list[int]()
        while count:
            pieces.append(whole_vectors(count, threads) or LANES)
            count = max(0, -(-(count - pieces[-1]) // LANES) * LANES)
        assert len(pieces) < 5
        for whole in pieces:
            for parts in (min(threads, -(-whole // SHARE)), threads if whole > ALONE else 1):
                assert -(-whole // parts) % LANES == 0, "the share of a thread, as torch reckons it"


@pytest.mark.parametrize("module", [nn.SiLU(), nn.GELU("tanh")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3, 6])
@pytest.mark.parametrize("width", [128, 682])
def test_an_element_is_activated_the_same_wherever_it_lies(
    module: nn.Module, dtype: torch.dtype, width: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    steady = SteadyActivation(module)
    row = (4 * trial(1, width)).to(dtype)
    alone = steady(row)
    outcomes = [bool((steady(row.expand(count, -1)) == alone).all()) for count in (2, 7, 33, 131, 136, 400)]
    torch.set_num_threads(before)
    assert all(outcomes)
    assert torch.allclose(alone.float(), module(row).float(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [160, 682])
def test_what_a_gate_lets_through_is_the_same_wherever_it_lies(width: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    gate, up = (4 * trial(1, 2 * width)).chunk(2, dim=-1)
    alone = SteadyGated()(gate, up)
    halves = [(4 * trial(1, 2 * width)).expand(count, -1).contiguous().chunk(2, dim=-1) for count in (2, 7, 222, 428)]
    outcomes = [bool((SteadyGated()(*each) == alone).all()) for each in halves]
    torch.set_num_threads(before)
    assert all(outcomes)
    assert torch.allclose(alone, Gated()(gate, up), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["at once", "halves", "backwards"])
@pytest.mark.parametrize("inputs", [64, 65, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_height_that_adds_in_another_order_is_found_though_results_are_rounded(
    dtype: torch.dtype, inputs: int, how: str
) -> None:
    """The height of 16 adds at once what others add in halves, or halves though they do not, or these backwards."""
    weight, bias = trial_weights((32, inputs, True, dtype))
    assert bias is not None
    halves = torch.arange(inputs).chunk(2)
    orders = {
        "at once": (halves, (torch.arange(inputs),)),
        "halves": ((torch.arange(inputs),), halves),
        "backwards": (halves, [half.flip(0) for half in halves]),
    }

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        made = torch.zeros(len(rows), len(weight))
        for piece in orders[how][len(rows) == 16]:
            part = torch.zeros_like(made)
            for column in piece:
                part += rows[:, column, None].float() * weight[:, column].float()
            made += part
        return (made + bias.float()).to(dtype)

    assert agreeing(equal_rows(weight, 32), (32, 16, 8), multiply) == (32, 8)
