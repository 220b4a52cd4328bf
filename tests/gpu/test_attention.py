"""Every attention backend that this GPU and its packages have computes what the reference computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.attention.selection import BACKENDS, bind
from omnimuse.core.config import AttentionConfig

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
NEAR = {"sage": 0.1}
"""How far a backend that rounds products may be from the reference; the others are held to the format."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.bfloat16)


@pytest.fixture(params=BACKENDS)
def site(request: pytest.FixtureRequest) -> Attention:
    site = Attention(3, 64)
    backend = BACKENDS[request.param]
    if (why := backend.why_not(torch.device("cuda"), torch.bfloat16, 64)) is not None:
        pytest.skip(why)
    bind(site, AttentionConfig(request.param), torch.device("cuda"), torch.bfloat16)
    return site


def close(site: Attention, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=NEAR.get(site.backend.name, 2e-2))


def test_rows_of_equal_length(site: Attention) -> None:
    q, k, v = draw(2, 130, 3, 64), draw(2, 77, 3, 64, seed=1), draw(2, 77, 3, 64, seed=2)
    close(site, site(q, k, v), Reference()(q, k, v))


def test_rows_of_different_lengths(site: Attention) -> None:
    layout, keys = Layout((130, 5, 64)), Layout((7, 200, 64))
    q, k, v = draw(1, 199, 3, 64), draw(1, 271, 3, 64, seed=1), draw(1, 271, 3, 64, seed=2)
    expected = Reference().packed(q, k, v, layout, keys)
    close(site, site(q, k, v, layout, kv_layout=keys), expected)


def test_queries_and_keys_that_lie_between_others(site: Attention) -> None:
    layout = Layout((40, 9))
    qkv = draw(1, 49, 3, 3, 64)
    q, k, v = qkv.unbind(2)
    close(site, site(q, k, v, layout), Reference().packed(q, k, v, layout, layout))


def test_the_default_is_the_kernel_that_torch_picks() -> None:
    [binding] = bind(Attention(3, 64), AttentionConfig(), torch.device("cuda"), torch.bfloat16)
    assert binding.backend == "sdpa", binding.reason
