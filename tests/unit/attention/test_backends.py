"""Backends that wrap a chosen kernel compute attention, or say why they cannot; the libraries are stood in for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.attention.backends import libraries
from omnimuse.attention.backends.libraries import (
    FLASH_2,
    SAGE,
    XFORMERS,
    FlashAttention,
    SageAttention,
    XFormers,
)
from omnimuse.attention.backends.one_by_one import OneByOne
from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.backends.sdpa import KERNELS, Sdpa, SdpaKernel
from omnimuse.attention.backends.varlen import ARGUMENTS, Varlen
from omnimuse.attention.layer import Attention, Backend
from omnimuse.attention.layout import Layout
from omnimuse.attention.selection import Unmasked

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALF = torch.bfloat16
LENGTHS = ((3, 5, 2), (4, 1, 6))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(query: Tensor, starts: Tensor) -> list[Tensor]:
    """[T, N, H] by where rows begin and end."""
    assert starts.dtype == torch.int32 and int(starts[-1]) == len(query)
    return list(query.split(starts.diff().tolist()))


class Library:
    """What the packages offer, computed by the reference; `calls` says by which names."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.made = 0
        blocks = SimpleNamespace(from_seqlens=self._blocks)
        self.fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=blocks))

    def __call__(self, module: str) -> Any:
        return self

    def _blocks(self, q: list[int], k: list[int], *, device: torch.device) -> tuple[list[int], list[int]]:
        self.made += 1
        return q, k

    def flash_attn_func(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        self.calls.append("dense")
        return Reference()(q, k, v), None

    def sageattn(self, q: Tensor, k: Tensor, v: Tensor, *, tensor_layout: str) -> Tensor:
        assert tensor_layout == "NHD"
        self.calls.append("dense")
        return Reference()(q, k, v)

    def varlen_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
    ) -> Tensor:
        self.calls.append("packed")
        assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
        each = zip(rows_of(query, cu_seq_q), rows_of(key, cu_seq_k), rows_of(value, cu_seq_k), strict=True)
        return torch.cat([Reference()(q[None], k[None], v[None])[0] for q, k, v in each])

    flash_attn_varlen_func = varlen_attn

    def sageattn_varlen(self, *packed: Any, smooth_k: bool) -> Tensor:
        assert not smooth_k, "it would take the mean of the keys of all rows"
        self.keys = packed[1]
        return self.varlen_attn(*packed)

    def memory_efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None) -> Tensor:
        self.calls.append("dense" if attn_bias is None else "packed")
        if attn_bias is None:
            return Reference()(q, k, v)
        parts = zip(q[0].split(attn_bias[0]), k[0].split(attn_bias[1]), v[0].split(attn_bias[1]), strict=True)
        return torch.cat([Reference()(*(part[None] for part in row))[0] for row in parts])[None]


def backends(library: Library) -> dict[str, Backend]:
    return {
        "flash_attn_2": FlashAttention("flash_attn_2", FLASH_2, library),
        "sage": SageAttention(SAGE, library),
        "xformers": XFormers(XFORMERS, library),
        "varlen": Varlen(library),
    }


@pytest.mark.parametrize("name", ["flash_attn_2", "sage", "xformers", "varlen"])
def test_packed_rows_are_one_call_of_the_library_and_attend_as_if_each_were_alone(name: str) -> None:
    library = Library()
    site, (layout, keys) = Attention(2, 8), (Layout(lengths) for lengths in LENGTHS)
    q, k, v = draw(1, 10, 2, 8), draw(1, 11, 2, 8, seed=1), draw(1, 11, 2, 8, seed=2)
    expected = site(q, k, v, layout, kv_layout=keys)
    site.backend = backends(library)[name]
    assert torch.allclose(site(q, k, v, layout, kv_layout=keys), expected, atol=1e-6)
    assert library.calls == ["packed"]


@pytest.mark.parametrize("name", ["flash_attn_2", "sage", "xformers"])
def test_rows_of_equal_length_are_one_dense_call_of_the_library_and_masks_are_refused(name: str) -> None:
    library = Library()
    backend, (q, k, v) = backends(library)[name], (draw(2, 5, 2, 8, seed=seed) for seed in range(3))
    assert torch.allclose(backend(q, k, v), Sdpa()(q, k, v), atol=1e-6)
    assert library.calls == ["dense"]
    with pytest.raises(ValueError, match=f"attention backend '{name}' takes no mask; choose 'sdpa'"):
        backend(q, k, v, torch.ones(5, 5, dtype=torch.bool))
    assert isinstance(backend, Unmasked) and "is called without one" in str(backend.why_no_mask(CUDA, HALF, 8))


@pytest.mark.parametrize("name", KERNELS)
def test_whether_a_kernel_of_torch_takes_masks_is_tried(name: str) -> None:
    kernel = SdpaKernel(name)
    if (why := kernel.why_not(CPU, torch.float32, 8)) is not None:
        assert kernel.why_no_mask(CPU, torch.float32, 8) == why
        return
    assert kernel.why_no_mask(CPU, torch.float32, 8) is None
    q, k, v = (draw(2, 5, 2, 8, seed=seed) for seed in range(3))
    past = torch.ones(5, 5, dtype=torch.bool).tril()
    assert torch.allclose(kernel(q, k, v, past), Reference()(q, k, v, past), atol=1e-6)


def test_a_library_that_is_missing_is_refused_with_what_to_install() -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    for backend, how in (
        (FlashAttention("x", FLASH_2, missing), 'pip install "omnimuse[flash]"'),
        (SageAttention(SAGE, missing), "build 2.2 or newer"),
        (XFormers(XFORMERS, missing), 'pip install "omnimuse[xformers]"'),
    ):
        why = backend.why_not(CUDA, HALF, 64)
        assert why is not None and "cannot be imported" in why and how in why
        assert "runs on CUDA, not on cpu" in str(backend.why_not(CPU, HALF, 64)), "installing it would not help"


def test_each_row_has_the_mean_of_its_own_keys_taken_out() -> None:
    library, (layout, keys) = Library(), (Layout(lengths) for lengths in LENGTHS)
    q, k = draw(1, 10, 2, 8), draw(1, 11, 2, 8, seed=1) + 5
    SageAttention(SAGE, library).packed(q, k, k, layout, keys)
    first, alone, last = library.keys.split(keys.lengths)
    assert first.mean(0).abs().max() < 1e-5 > last.mean(0).abs().max() and torch.equal(alone, k[0, 4:5])


def test_the_blocks_of_a_layout_are_made_once() -> None:
    library, (layout, keys) = Library(), (Layout(lengths) for lengths in LENGTHS)
    q, k, backend = draw(1, 10, 2, 8), draw(1, 11, 2, 8, seed=1), XFormers(XFORMERS, library)
    for _ in range(3):
        backend.packed(q, k, k, layout, keys)
    assert library.made == 1


@pytest.mark.parametrize(
    ("found", "trusted"), [("1.0.6", False), ("2.0.1", False), ("2.2rc1", True), ("2.2.0", True), ("3.0", True)]
)
def test_a_version_that_weighs_keys_that_are_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str, trusted: bool
) -> None:
    monkeypatch.setattr(libraries, "version", lambda package: found)
    monkeypatch.setattr(libraries, "too_old", lambda device: None)
    why = SAGE.obstacle(CUDA, HALF, 64, Library())
    assert trusted is (why is None)
    assert trusted or f"sageattention {found} gives weight to keys that are not there; build 2.2" in str(why)


def test_a_library_that_fails_where_it_is_tried_is_refused_with_what_it_says() -> None:
    library = Library()
    assert XFormers(XFORMERS, library).tried(CPU, HALF, 8) is None
    assert library.calls == ["dense", "packed"]
    alone = FlashAttention("x", FLASH_2, lambda module: SimpleNamespace())  # as where FlashAttention 4 is there alone
    assert "flash_attn fails when it is tried: " in str(alone.tried(CPU, HALF, 8))


@pytest.mark.parametrize(
    ("device", "dtype", "width", "why"),
    [
        (CPU, HALF, 64, "sageattention runs on CUDA, not on cpu"),
        (CUDA, torch.float32, 64, "computes in float16 and bfloat16, not in torch.float32"),
        (CUDA, HALF, 136, "takes heads of 8, 16 ... 128 numbers, not of 136"),
    ],
)
def test_a_library_says_what_it_does_not_take(device: torch.device, dtype: torch.dtype, width: int, why: str) -> None:
    assert why in str(SageAttention(SAGE, Library()).why_not(device, dtype, width))


def test_the_kernel_for_packed_rows_must_take_what_it_is_given() -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    other = SimpleNamespace(varlen_attn=lambda query, starts: query)
    assert Varlen().missing() is None  # this torch's, by the arguments it is called with
    assert "has no kernel for packed rows" in str(Varlen(missing).missing())
    assert "takes ('query', 'starts')" in str(Varlen(lambda module: other).missing())
    assert "8, 16 ... 256" in str(Varlen().why_not(CUDA, HALF, 20)) and len(ARGUMENTS) == 7


def test_a_chosen_kernel_of_torch_computes_or_says_why_it_cannot() -> None:
    q, k, v = (draw(2, 5, 2, 8, seed=seed) for seed in range(3))
    found = {name: SdpaKernel(name).why_not(CPU, torch.float32, 8) for name in KERNELS}
    assert found["sdpa_flash"] is None and found["sdpa_math"] is None
    assert "No viable backend" in str(found["sdpa_cudnn"]) and "No viable backend" in str(found["sdpa_efficient"])
    for name in ("sdpa_flash", "sdpa_math"):
        assert torch.allclose(SdpaKernel(name)(q, k, v), Reference()(q, k, v), atol=1e-6)


def test_rows_that_must_be_alone_stay_alone_in_packed_calls() -> None:
    library, (layout, keys) = Library(), (Layout(lengths) for lengths in LENGTHS)
    q, k = draw(1, 10, 2, 8), draw(1, 11, 2, 8, seed=1)
    OneByOne(backends(library)["flash_attn_2"]).packed(q, k, k, layout, keys)
    assert library.calls == ["dense"] * 3


@pytest.mark.parametrize(("queries", "keys", "heads"), [(3, 60, 2), (13, 13, 3), (6, 40, 1), (32, 75, 1), (40, 6, 2)])
@pytest.mark.parametrize("mask", ["none", "keys", "both"])
def test_few_queries_that_are_filled_up_see_the_same_with_any_number_of_threads(
    queries: int, keys: int, heads: int, mask: str
) -> None:
    q, k, v = (draw(1, length, heads, 8, seed=seed) for seed, length in enumerate((queries, keys, keys)))
    shape = {"none": None, "keys": (1, 1, 1, keys), "both": (1, 1, queries, keys)}[mask]
    seen = None if shape is None else (draw(*shape, seed=3) > 0) | (torch.arange(keys) == 0)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(OneByOne(Sdpa())(q, k, v, seen))
    torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)
    torch.testing.assert_close(found[0], Sdpa()(q, k, v, seen))


@pytest.mark.parametrize("queries", [1, 32, 77])
def test_what_keys_weigh_by_the_kernel_of_a_gpu_is_told_of_each_query_and_of_no_other(queries: int) -> None:
    """By the shapes that torch has for it: its weights are of a multiple of 32 queries."""
    q, k = (torch.empty(1, length, 2, 64, dtype=HALF, device="meta") for length in (queries, 50))
    whole = torch.ops.aten._scaled_dot_product_efficient_attention(*(x.transpose(1, 2) for x in (q, k, k)), None, True)
    assert whole[1].shape == (1, 2, -(-queries // 32) * 32)
    out, weight = Sdpa().weigh(q, k, k)
    assert (out.shape, weight.shape) == ((1, queries, 2, 64), (1, queries, 2))


def test_a_layout_makes_the_ends_of_its_rows_once() -> None:
    layout = Layout((3, 5, 2))
    assert layout.ends(CPU).tolist() == [0, 3, 8, 10] and layout.ends(CPU).dtype == torch.int32
    assert layout.ends(CPU) is layout.ends(CPU)
    assert layout == Layout((3, 5, 2)) and hash(layout) == hash(Layout((3, 5, 2)))
