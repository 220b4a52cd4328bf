"""Attention libraries are called as they really are, wherever one of them is installed; no GPU is needed.

What their kernels for GPUs compute is for `tests/gpu`; those in Triton run here, by its interpreter.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from omnimuse.attention.backends.libraries import FLASH_2, FLASH_3, SAGE, XFORMERS, Package, SageAttention, XFormers
from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.backends.varlen import laid_end_to_end
from omnimuse.attention.layout import Layout

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROWS = [((3, 5, 2), (4, 1, 6)), ((5, 5), (4, 7)), ((130, 5, 64), (7, 200, 64))]
"""Lengths of rows: of queries, and of their keys. Of the second the queries are stacked and the keys are not."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(
    lengths: tuple[tuple[int, ...], tuple[int, ...]], width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Layout, Layout]:
    """q, k and v of two heads, and the layouts by which they are packed."""
    layout, keys = map(Layout, lengths)
    q, k, v = (
        each.pack([draw(length, 2, width, seed=seed + length, dtype=dtype) for length in each.lengths])
        for seed, each in enumerate((layout, keys, keys))
    )
    return q, k, v, layout, keys


def installed(package: Package) -> Any:
    """The library, or else the test is skipped."""
    if package is SAGE and find_spec(SAGE.module):  # its sources do without what is compiled for GPUs
        sys.modules.setdefault("sageattention._fused", ModuleType("sageattention._fused"))
    found = pytest.importorskip(package.module, exc_type=ImportError)
    if (why := package.too_early()) is not None:
        pytest.skip(why)
    return found


@pytest.mark.parametrize(
    ("package", "dense", "of_rows", "more"),
    [
        (FLASH_2, "flash_attn_func", "flash_attn_varlen_func", {}),
        (FLASH_3, "flash_attn_func", "flash_attn_varlen_func", {}),
        (SAGE, "sageattn", "sageattn_varlen", {"tensor_layout": "NHD"}),
        (XFORMERS, "memory_efficient_attention", None, {}),
    ],
    ids=["flash_attn_2", "flash_attn_3", "sage", "xformers"],
)
def test_functions_take_what_they_are_given(
    package: Package, dense: str, of_rows: str | None, more: dict[str, str]
) -> None:
    library = installed(package)
    q, k, v, layout, keys = packed(ROWS[0], 8)
    assert list(inspect.signature(getattr(library, dense)).bind(q, k, v, **more).arguments)[:3] in (
        ["q", "k", "v"],
        ["query", "key", "value"],
    )
    if of_rows is not None:
        given = inspect.signature(getattr(library, of_rows)).bind(*laid_end_to_end(q, k, v, layout, keys))
        places = ["q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
        assert list(given.arguments) == places


@pytest.mark.parametrize("lengths", ROWS)
def test_xformers_accepts_rows_of_different_lengths_and_its_mask_keeps_them_apart(
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    ops = installed(XFORMERS)

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any) -> Tensor:
        ops.fmha.Inputs(query, key, value, attn_bias).validate_inputs()
        made.append(attn_bias)
        return Reference()(query, key, value, attn_bias.materialize((1, 1, query.shape[1], key.shape[1])))

    made: list[Any] = []
    checked = XFormers(XFORMERS, lambda module: SimpleNamespace(fmha=ops.fmha, memory_efficient_attention=attend))
    q, k, v, layout, keys = packed(lengths, 8)
    expected = Reference().packed(q, k, v, layout, keys)
    for _ in range(2):
        torch.testing.assert_close(checked.packed(q, k, v, layout, keys), expected)
    assert made[0] is made[1], "every block of a forward asks for the same"


def test_xformers_that_is_not_built_for_the_device_says_so_when_it_is_tried() -> None:
    installed(XFORMERS)
    why = str(XFormers(XFORMERS).tried(CPU, torch.bfloat16, 64))
    assert why.startswith("xformers.ops fails when it is tried: No operator found") and "device=cpu" in why


@pytest.mark.costly
@pytest.mark.skipif(INTERPRETED, reason="is what runs the next one")
def test_sageattention_computes_attention_within_what_its_products_are_rounded_by() -> None:
    """In a process of its own: Triton asks for its interpreter when kernels are defined."""
    installed(SAGE)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "interpreted"]
    found = subprocess.run(
        tests,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    assert set(found.stdout.split()[0]) == {"."}, found.stdout[-300:]


@pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("width", [64, 72, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpreted_sageattention(width: int, dtype: torch.dtype) -> None:
    sage, library = SageAttention(SAGE), installed(SAGE)
    on_gpu = mock.patch.object(Tensor, "is_cuda", True), mock.patch("torch.cuda.set_device")
    with on_gpu[0], on_gpu[1], mock.patch.object(library.core, "get_cuda_arch_versions", return_value={None: "sm86"}):
        q, k, v = (draw(2, length, 2, width, seed=seed, dtype=dtype) for seed, length in enumerate((130, 77, 77)))
        before = k.clone()
        near(sage(q, k, v), Reference()(q, k, v))
        assert torch.equal(k, before)
        for lengths in ROWS:
            given = packed(lengths, width, dtype)
            found, places = sage.packed(*given), given[3].slices()
            near(found, Reference().packed(*given))
            for query, key, place in zip(*lengths, places, strict=True):
                alone = sage.packed(*packed(((query,), (key,)), width, dtype))
                assert torch.equal(found.flatten(0, 1)[place], alone[0]), "a row depends on its company"


def near(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found - expected).float().norm() / expected.float().norm() < 0.03
    assert (found - expected).abs().max() < 0.1
