"""Attention keeps rows apart, and its kernels agree with the one written out in float32."""

import pytest
import torch

from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.plans import Cut


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", ["no mask", "boolean", "additive"])
def test_the_fused_kernel_agrees_with_the_reference(dtype, tolerance, masked):
    q, k, v = (draw(2, length, 3, 8, seed=length, dtype=dtype) for length in (5, 7, 7))
    keep = draw(2, 1, 5, 7, seed=3) > -0.5
    mask = {
        "no mask": None,
        "boolean": keep,
        "additive": torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, -torch.inf),
    }[masked]
    assert torch.allclose(Sdpa()(q, k, v, mask), Reference()(q, k, v, mask), atol=tolerance)


@pytest.mark.parametrize("lengths", [(4, 4), (3, 5), (6,)])
def test_packed_rows_attend_as_if_each_were_alone(lengths):
    site, layout = Attention(2, 8), Layout(lengths)
    rows = [[draw(length, 2, 8, seed=10 * row + which) for which in range(3)] for row, length in enumerate(lengths)]
    packed = site(*(layout.pack([row[which] for row in rows]) for which in range(3)), layout)
    for (q, k, v), together in zip(rows, layout.unpack(packed), strict=True):
        assert torch.allclose(together, site(q[None], k[None], v[None])[0], atol=1e-6)


@pytest.mark.parametrize("kv_lengths", [(2, 7), (7, 7)])
def test_cross_attention_may_have_keys_of_another_layout(kv_lengths):
    site, layout, kv_layout = Attention(2, 8), Layout((3, 5)), Layout(kv_lengths)
    queries = [draw(length, 2, 8, seed=length) for length in layout.lengths]
    keys = [draw(length, 2, 8, seed=20 + row) for row, length in enumerate(kv_lengths)]
    kv = kv_layout.pack(keys)
    packed = site(layout.pack(queries), kv, kv, layout, kv_layout=kv_layout)
    for q, k, together in zip(queries, keys, layout.unpack(packed), strict=True):
        assert torch.allclose(together, site(q[None], k[None], k[None])[0], atol=1e-6)


def test_a_mask_for_rows_of_unequal_length_is_refused():
    q = draw(1, 5, 2, 8)
    with pytest.raises(ValueError, match="cannot take a mask"):
        Attention(2, 8)(q, q, q, Layout((2, 3)), mask=torch.ones(1, 1, 5, 5, dtype=torch.bool))


@pytest.mark.parametrize(("mask", "said"), [(None, "was not bound to attend across"), (torch.ones(1), "take a mask")])
def test_tokens_that_are_spread_over_ranks_are_not_taken_for_all_of_a_row(mask, said):
    q = draw(2, 2, 2, 8)
    with pytest.raises(ValueError, match=f"spread over ranks.*{said}"):
        Attention(2, 8)(q, q, q, Layout((4, 4)).cut(Cut(0, 2)), mask)
