"""Our Wan transformer against diffusers', with tiny random weights in float32 and as the reference mixes dtypes.

Both read the same saved checkpoint; every weight is redrawn, so that no forgotten norm, bias or gate can hide behind a
0 or a 1. The tiny network has another width for text, time and hidden states, so that none can stand in for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.layers.stack import Memory
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights
from omnimuse.models.wan.transformer import WanConfig, WanInputs, WanTransformer
from omnimuse.models.wan.weights import FLOAT32, RULES
from tests.checkpoints import parts

TINY = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 24,
    "ffn_dim": 80,
    "num_layers": 3,
    "rope_max_seq_len": 40,
}

Case = list[tuple[Tensor, Tensor, Tensor]]
"""Latents [4, f, h, w], times ([1], or one per frame) and text features [L, 20] of every row."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(sizes: Sequence[tuple[int, int, int, int]], per_frame: bool = False) -> Case:
    """Rows of (frames, height, width, text tokens), every one at its own time, or every frame of it."""
    rows = []
    for row, (f, h, w, tokens) in enumerate(sizes):
        t = torch.tensor([970.0 - 130 * row - 31 * (frame * per_frame) for frame in range(f if per_frame else 1)])
        rows.append((draw(10 + row, 4, f, h, w), t, 3 * draw(50 + row, tokens, 20)))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan_network")
    parts.save_module(folder, "transformer", 0, partial(WanTransformer3DModel, **TINY))
    return folder / "transformer"


def theirs(folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).eval().requires_grad_(False)


def ours(folder: Path, dtype: torch.dtype) -> WanTransformer:
    network = construct(partial(WanTransformer.from_config, TINY))
    load_weights(network, folder, RULES, DtypePolicy(dtype, FLOAT32), "cpu")
    return network


@pytest.fixture(scope="module")
def reference(folder: Path) -> WanTransformer3DModel:
    return theirs(folder, torch.float32)


@pytest.fixture(scope="module")
def network(folder: Path) -> WanTransformer:
    return ours(folder, torch.float32)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def rows_of(network: WanTransformer, case: Case) -> list[WanInputs]:
    return [WanInputs(x, t, network.prepare(text, *x.shape[1:])) for x, t, text in case]


def expected(reference: WanTransformer3DModel, row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The reference wants one time, or one for every token."""
    x, t, text = row
    tokens = x[0].numel() // 4
    times = t if len(t) == 1 else t.repeat_interleave(tokens // len(t))[None]
    return reference(x[None].to(reference.dtype), times, text[None].to(reference.dtype), return_dict=False)[0][0]


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


SIZES = {
    "one row": [(2, 4, 6, 9)],
    "one frame": [(1, 8, 4, 5)],
    "equal rows": [(2, 4, 6, 9)] * 3,
    "equal videos, prompts of other lengths": [(2, 4, 6, 9), (2, 4, 6, 4), (2, 4, 6, 7)],
    "equal lengths, other frames": [(4, 2, 6, 9), (2, 4, 6, 9), (1, 6, 8, 9)],
    "every row of its own size": [(2, 4, 6, 9), (1, 2, 2, 12), (5, 6, 4, 1)],
}


@pytest.mark.parametrize("per_frame", [False, True], ids=["a time per row", "a time per frame"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_predictions_equal_the_reference_however_rows_share_a_forward(reference, network, sizes, per_frame):
    case = make(sizes, per_frame)
    for found, row in zip(network(rows_of(network, case)), case, strict=True):
        wanted = expected(reference, row)
        assert found.shape == row[0].shape
        assert distance(found, wanted) < 2e-6


def test_rows_with_a_time_and_rows_with_times_share_a_forward(reference, network):
    case = [*make([(2, 4, 6, 9)]), *make([(2, 4, 6, 9), (3, 4, 2, 5)], per_frame=True)]
    for found, row in zip(network(rows_of(network, case)), case, strict=True):
        assert distance(found, expected(reference, row)) < 2e-6


@pytest.mark.parametrize("per_frame", [False, True], ids=["a time per row", "a time per frame"])
def test_half_precision_rounds_where_the_reference_does(folder, per_frame):
    reference, network = theirs(folder, torch.bfloat16), ours(folder, torch.bfloat16)
    kept = {name for name, weight in network.named_parameters() if weight.dtype == torch.float32}
    assert len(kept) == sum(weight.dtype == torch.float32 for weight in reference.parameters())
    [row] = make([(2, 4, 6, 9)], per_frame)
    [found] = network(rows_of(network, [row]))
    assert found.dtype == torch.bfloat16
    assert distance(found, expected(reference, row)) < 5e-3


def test_every_weight_of_ours_matters(network):
    case = make(SIZES["one row"])

    def run() -> Tensor:
        return network(rows_of(network, case))[0]

    plain = run()
    for name, weight in network.named_parameters():
        kept = weight.clone()
        weight.mul_(1.5)
        assert not torch.equal(run(), plain), name
        weight.copy_(kept)


@pytest.mark.parametrize("per_frame", [False, True])
def test_selected_conditions_are_those_of_the_rows_alone(network, per_frame):
    seen = []

    class Watch:
        def __call__(self, blocks, hidden, cond, memories=None):
            assert memories is None or [memory.step for memory in memories] == [3, 4, 5]
            seen.append((hidden, cond))
            return hidden

    network.blocks.runner, plain = Watch(), network.blocks.runner
    rows = rows_of(network, make(SIZES["every row of its own size"], per_frame))
    network(rows, [Memory(step=step) for step in (3, 4, 5)])
    network([rows[2], rows[0]])
    network.blocks.runner = plain
    (hidden, cond), (alone, expected) = seen
    chosen, block = cond.select([2, 0]), network.blocks.blocks()[0]
    assert (chosen.layout, chosen.spans, chosen.text_layout) == (expected.layout, expected.spans, expected.text_layout)
    found = block(cond.layout.take(hidden, [2, 0]), chosen)
    assert distance(found, block(alone, expected)) < 1e-6
    assert distance(block.probe(alone, chosen), block.probe(alone, expected)) < 1e-6


def test_the_probe_is_what_the_first_attention_sees(network):
    block = network.blocks.blocks()[0]
    seen = []
    inner, plain = block.self_attention, network.blocks.runner

    class Watch(torch.nn.Module):
        def forward(self, x, cond):
            seen.append(x)
            return inner(x, cond)

    class Probe:
        def __call__(self, blocks, hidden, cond, memories=None):
            seen.append(blocks[0].probe(hidden, cond))
            return plain(blocks, hidden, cond, memories)

    block.self_attention, network.blocks.runner = Watch(), Probe()
    network(rows_of(network, make(SIZES["every row of its own size"])))
    block.self_attention, network.blocks.runner = inner, plain
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_dim": 1280}, "image_dim=1280 is not supported; only None is"),
        ({"added_kv_proj_dim": 64}, "added_kv_proj_dim=64 is not supported"),
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not supported; only 'rms_norm_across_heads' is"),
        ({"patch_size": [2, 2]}, r"patch_size=\(2, 2\)"),
        ({"flux_capacitor": 88}, "unknown key 'flux_capacitor' .88."),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(change, message):
    with pytest.raises(ModelError, match=message):
        WanConfig.from_dict(TINY | change)


def test_what_a_configuration_leaves_out_is_what_the_reference_takes(reference):
    given = ("num_attention_heads", "attention_head_dim", "in_channels")
    found = WanConfig.from_dict({key: TINY[key] for key in given})
    assert found.out_channels == 4
    assert found.patch_size == (1, 2, 2)
    assert WanConfig.from_dict(reference.config) == WanConfig.from_dict(TINY)


def test_latents_beyond_the_positions_of_the_checkpoint_are_refused(network):
    text = torch.zeros(9, 20)
    with pytest.raises(RequestError, match="cannot be cut into patches"):
        network.prepare(text, 1, 7, 8)
    with pytest.raises(RequestError, match="more than 40 patches along a side"):
        network.prepare(text, 1, 82, 8)
    with pytest.raises(RequestError, match="fewer frames"):
        network.prepare(text, 41, 8, 8)
    assert network.prepare(text, 40, 2, 2).tokens == 40
