"""The fused kernels compute what the plain ones compute; on a GPU, or under Triton's interpreter (TRITON_INTERPRET=1).

The suite of a machine without a GPU runs this file in a child process (`tests/unit/layers/test_fused.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from omnimuse.layers.kernels import HeadNorm, Kernels, Plain
from omnimuse.layers.rotary import rotary_table

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("triton") is None, reason="needs triton"),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative, and absolute for numbers near one: two or three steps of the format."""
DTYPES = list(TOLERANCE)


@pytest.fixture
def fused() -> Kernels:
    from omnimuse.layers.fused import Fused

    return Fused()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def agree(fused: Kernels, compute: Callable[[Kernels, torch.dtype], Tensor], dtype: torch.dtype) -> None:
    """The fused outcome in `dtype` is that of plain kernels in float32 from the same numbers, to the format's steps."""
    found, exact = compute(fused, dtype), compute(Plain(), torch.float32)
    assert found.dtype == dtype and found.shape == exact.shape
    torch.testing.assert_close(found.float(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def as_given(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """`tensors`, whose numbers are of some format, in `dtype`."""
    return [tensor.to(dtype) for tensor in tensors]


SHAPES = {
    "one row": ((1, 7, 48), (1, 1, 48)),
    "equal rows": ((2, 5, 96), (2, 1, 96)),
    "rows end to end": ((1, 9, 64), (1, 9, 64)),
    "spans": ((2, 6, 48), (4, 1, 48)),
    "one for all": ((3, 4, 130), (1, 1, 130)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_modulated_norm_in_one_pass_is_that_of_several(fused: Kernels, shape: str, dtype: torch.dtype) -> None:
    size, vectors = SHAPES[shape]
    x, mods = draw(*size, dtype=dtype) + 3, draw(*vectors[:-1], 3 * vectors[-1], seed=1, dtype=dtype)

    def compute(kernels: Kernels, to: torch.dtype) -> Tensor:
        given, *parts = as_given(to, x, *mods.chunk(3, dim=-1)) if to != dtype else (x, *mods.chunk(3, dim=-1))
        scale, shift = expanded(kernels, size, parts[0], parts[2])
        return kernels.modulated_norm(given, 1e-6, scale, shift)

    agree(fused, compute, dtype)


def expanded(kernels: Kernels, size: tuple[int, ...], *vectors: Tensor) -> list[Tensor]:
    """Vectors of spans as plain kernels take them, which know of spans no more than broadcasting does."""
    rows = size[0] * size[1]
    if kernels.name != "plain":
        return list(vectors)
    return [
        each.reshape(-1, size[-1]).repeat_interleave(rows // (each.numel() // size[-1]), 0).view(size)
        for each in vectors
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_an_rms_norm_in_one_pass_is_that_of_several(fused: Kernels, dtype: torch.dtype, scaled: bool) -> None:
    x, weight, scale = (
        draw(2, 5, 200, dtype=dtype),
        draw(200, seed=1, dtype=dtype),
        draw(2, 1, 200, seed=2, dtype=dtype),
    )

    def compute(kernels: Kernels, to: torch.dtype) -> Tensor:
        given, factor, more = as_given(to, x, weight, scale)
        return kernels.rms_norm(given, factor, 1e-5, more if scaled else None)

    agree(fused, compute, dtype)


def test_an_rms_norm_of_any_shape_is_that_of_its_rows(fused: Kernels) -> None:
    x, weight = draw(2, 3, 4, 40)[..., ::2], draw(20, seed=1)
    for view in (x, x.transpose(1, 2), x[0, 0]):
        torch.testing.assert_close(
            fused.rms_norm(view, weight, 1e-5, None), Plain().rms_norm(view, weight, 1e-5, None), rtol=2e-6, atol=2e-6
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["equal rows", "rows end to end"])
def test_a_gated_sum_in_one_pass_is_that_of_several(fused: Kernels, shape: str, dtype: torch.dtype) -> None:
    size, vectors = SHAPES[shape]
    residual, gate, x = draw(*size, dtype=dtype), draw(*vectors, seed=1, dtype=dtype), draw(*size, seed=2, dtype=dtype)
    weight = draw(size[-1], seed=3, dtype=dtype)
    agree(fused, lambda kernels, to: kernels.add(*as_given(to, residual, gate, x)), dtype)
    agree(fused, lambda kernels, to: kernels.add_rms_norm(*as_given(to, residual, gate, x, weight), 1e-5), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_in_one_pass_are_those_of_several(fused: Kernels, dtype: torch.dtype) -> None:
    wide = 9 * draw(2, 5, 2500, dtype=dtype)
    attended, mlp = wide[..., :300], wide[..., 300:1600]
    agree(fused, lambda kernels, to: kernels.gated(*as_given(to, mlp, wide[..., 1200:])), dtype)
    for activation in (nn.GELU("tanh"), nn.GELU(), nn.SiLU()):

        def compute(kernels: Kernels, to: torch.dtype, activation: nn.Module = activation) -> Tensor:
            return kernels.beside(*as_given(to, attended, mlp), activation)

        agree(fused, compute, dtype)


def test_parts_of_a_sequence_are_computed_where_they_lie(fused: Kernels) -> None:
    whole, gate, x = draw(2, 9, 48), draw(2, 1, 48, seed=1), draw(2, 4, 48, seed=2)
    part = whole[:, 5:]
    assert not part.is_contiguous()
    for name, given in (("add", (part, gate, x)), ("modulated_norm", (part, 1e-6, gate, gate))):
        found, expected = getattr(fused, name)(*given), getattr(Plain(), name)(*given)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounds_once", [False, True])
@pytest.mark.parametrize(("heads", "axes"), [(3, (4, 2, 2)), (2, (16, 24, 24)), (5, (8, 8, 4))])
@pytest.mark.parametrize("turned", [False, True])
def test_queries_and_keys_are_normed_and_turned_in_one_pass(
    fused: Kernels, dtype: torch.dtype, rounds_once: bool, heads: int, axes: tuple[int, ...], turned: bool
) -> None:
    width = sum(axes)
    qkv, weight = draw(2, 6, 3, heads, width, dtype=dtype), 1 + 0.1 * draw(2 * width, seed=1, dtype=dtype)
    table = rotary_table(torch.arange(18).reshape(6, 3), axes, 256.0).to(DEVICE)[None].expand(2, -1, -1, -1, -1)

    def compute(kernels: Kernels, to: torch.dtype) -> Tensor:
        qk, factor = as_given(to, qkv, weight)
        return kernels.norm_and_turn(qk[:, :, :2], HeadNorm(factor, 1e-5, rounds_once), table if turned else None)

    agree(fused, compute, dtype)
    agree(fused, lambda kernels, to: kernels.turn(qkv[:, :, :2].to(to), table), dtype)


def test_vectors_that_fit_no_spans_are_refused(fused: Kernels) -> None:
    with pytest.raises(ValueError, match=r"\(3, 1, 8\) cannot be shared out among the tokens of \(1, 4, 8\)"):
        fused.add(draw(1, 4, 8), draw(3, 1, 8), draw(1, 4, 8))
