"""Packed weights on a GPU: units for whole numbers and floats of 8 bits give what the same sums give elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from omnimuse.core.config import QuantConfig
from omnimuse.engine.engine import Engine
from omnimuse.loader.torchao_tiles import in_order
from omnimuse.quant.schemes import SCHEMES, whole_product
from tests.distance import distance
from tests.invariants.conftest import Subject, run
from tests.invariants.test_quantized import FAR
from tests.unit.quant.test_schemes import BOUNDS, error, layer, normal

Make = Callable[..., Engine]
needed = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator here")


@needed
@pytest.mark.parametrize("tokens", [1, 16, 17, 300])
@pytest.mark.parametrize("inputs", [40, 2560, 3001])
def test_whole_numbers_are_added_up_exactly_on_a_gpu(tokens: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-127, 128, (n, inputs), generator=generator).to(torch.int8) for n in (tokens, 96))
    assert torch.equal(whole_product(x.cuda(), weight.cuda()).cpu(), (x.double() @ weight.double().t()).float())


@needed
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_on_a_gpu_is_as_near_the_exact_one_as_on_a_cpu(scheme: str, dtype: torch.dtype) -> None:
    weight, bias, x = normal(96, 2560) * 0.02, normal(96, seed=1), normal(3, 70, 2560, seed=2) * 40
    found = layer(scheme, weight, bias, dtype).cuda()(x.cuda().to(dtype))
    assert found.dtype == dtype
    assert 0 < error(found.cpu(), F.linear(x, weight, bias)) < BOUNDS[scheme] + 0.006


@needed
def test_tiles_are_read_in_the_order_in_which_torch_writes_them() -> None:
    numbers = torch.randint(16, (24, 2048), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    pairs = (numbers[:, ::2] << 4) | numbers[:, 1::2]
    assert torch.equal(in_order(torch.ops.aten._convert_weight_to_int4pack(pairs.cuda(), 8).cpu()), numbers)


@pytest.mark.parametrize("scheme", FAR)
def test_packed_weights_draw_on_a_gpu_nearly_what_float32_draws(subject: Subject, engine_on: Make, scheme: str) -> None:
    plain, packed = engine_on(), engine_on(quantize=QuantConfig({"": scheme}))
    [found], [expected] = run(packed, subject.ask(0)), run(plain, subject.ask(0))
    assert 0 < distance(found, expected) < FAR[scheme]
