"""FlexAttention computes what the other backends do, by blocks that are torch's own, and says where it is compiled."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from omnimuse.attention.backends.flex import Blocks, Flex
from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.attention.selection import BACKENDS, bind
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROWS = [((3, 5, 2), (4, 1, 6)), ((130, 300, 64), (7, 200, 64)), ((256, 128, 300), (256, 128, 301)), ((40,) * 3,) * 2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", ROWS)
def test_the_blocks_of_packed_rows_are_those_that_torch_finds_by_asking_for_every_pair(
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    found = Blocks.of(*map(Layout, lengths), CPU)
    asked = create_block_mask(
        lambda b, n, s, k: found.queries[s] == found.keys[k], 1, 1, *map(sum, lengths), device="cpu"
    )
    assert torch.equal(found.partly, asked.kv_num_blocks) and torch.equal(found.wholly, asked.full_kv_num_blocks)
    for ours, theirs, counts in (
        (found.those_partly, asked.kv_indices, found.partly),
        (found.those_wholly, asked.full_kv_indices, found.wholly),
    ):
        for mine, other, count in zip(ours[0, 0], theirs[0, 0], counts[0, 0], strict=True):
            assert torch.equal(mine[:count], other[:count])


def test_packed_rows_attend_in_one_call_as_if_each_were_alone() -> None:
    flex = BACKENDS["flex"]
    for lengths in ROWS[:2]:
        layout, keys = map(Layout, lengths)
        q = layout.pack([draw(length, 2, 8, seed=length) for length in layout.lengths])
        k, v = (keys.pack([draw(length, 2, 8, seed=length + at) for length in keys.lengths]) for at in (1, 2))
        expected = Sdpa().packed(q, k, v, layout, keys)
        torch.testing.assert_close(flex.packed(q, k, v, layout, keys), expected, atol=1e-6, rtol=1e-5)
    assert list(layout.made) == [("flex", keys.lengths, CPU)], "every block of a forward asks for the same"


@pytest.mark.costly
def test_masks_and_what_keys_weigh_are_as_by_torch_s_fused_attention() -> None:
    flex = BACKENDS["flex"]
    q, k, v = draw(2, 9, 3, 8), draw(2, 7, 3, 8, seed=1), draw(2, 7, 3, 8, seed=2)
    for mask in (None, (draw(2, 1, 1, 7, seed=3) > 0) | (torch.arange(7) == 0), draw(9, 7, seed=4)):
        torch.testing.assert_close(flex(q, k, v, mask), Sdpa()(q, k, v, mask), atol=1e-6, rtol=1e-5)
    for found, expected in zip(flex.weigh(q, k, v), Sdpa().weigh(q, k, v), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_it_says_whether_it_is_compiled_and_compiled_blocks_on_a_cpu_cannot_have_it() -> None:
    net = nn.ModuleList([Attention(2, 8)])
    [binding] = bind(net, AttentionConfig("flex"), CPU, torch.float32)
    assert binding.reason.startswith("default, not compiled, since on a CPU")
    assert Flex().how(CUDA) == "compiled when it first runs, for all lengths"
    with pytest.raises(ConfigError, match=r"'flex' cannot run at role 'self' on cpu.*compiler makes no code for its"):
        bind(net, AttentionConfig("flex"), CPU, torch.float32, compiled=True)
    assert Flex().why_not_within(CUDA) is None
    [binding] = bind(net, AttentionConfig("sdpa"), CPU, torch.float32, compiled=True)
    assert binding.reason == "default"


def test_what_it_does_not_take_is_refused_with_the_reason() -> None:
    def missing(module: str) -> Any:
        raise ImportError(module)

    assert "runs on CUDA and on CPUs, not on meta" in str(Flex().why_not(torch.device("meta"), torch.float32, 64))
    assert "not in torch.float64" in str(Flex().why_not(CPU, torch.float64, 64))
    assert "heads of at least 16 numbers on a GPU, not of 8" in str(Flex().why_not(CUDA, torch.bfloat16, 8))
    assert "no FlexAttention that tells" in str(Flex(missing).why_not(CPU, torch.float32, 8))
    assert "no FlexAttention that tells" in str(Flex(lambda module: SimpleNamespace()).missing())
    assert Flex().why_not(CPU, torch.float32, 8) is None
