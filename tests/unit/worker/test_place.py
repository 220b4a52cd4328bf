"""What is told of the place where a model computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from omnimuse.worker.place import shorter_products

GPU, CPU = torch.device("cuda"), torch.device("cpu")
KINDS = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture
def _as_before() -> Iterator[None]:
    before = [kind.fp32_precision for kind in KINDS]
    yield
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision


@pytest.mark.parametrize(
    ("products", "convolutions", "told"),
    [
        ("ieee", "ieee", "none"),
        ("ieee", "tf32", "convolutions"),
        ("tf32", "ieee", "products"),
        ("tf32", "tf32", "products and convolutions"),
    ],
)
@pytest.mark.usefixtures("_as_before")
def test_where_a_gpu_takes_shorter_numbers_for_float32_is_told_as_torch_is_set(
    products: str, convolutions: str, told: str
) -> None:
    for kind, precision in zip(KINDS, (products, convolutions), strict=True):
        kind.fp32_precision = precision
    [choice] = shorter_products(GPU, {torch.bfloat16, torch.float32})
    assert (choice.name, choice.value) == ("tf32", told)


def test_nothing_is_told_where_nothing_is_in_float32_or_there_is_no_such_number() -> None:
    assert shorter_products(GPU, {torch.bfloat16}) == shorter_products(CPU, {torch.float32}) == []
