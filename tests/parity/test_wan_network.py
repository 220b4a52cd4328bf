"""Our Wan transformer against diffusers', with tiny random weights in float32 and as the reference mixes dtypes.

Both read the same saved checkpoint; every weight is redrawn, so that no forgotten norm, bias or gate can hide behind a
0 or a 1. The tiny network has another width for text, time and hidden states, so that none can stand in for another.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.layers.stack import Memory
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights
from omnimuse.models.wan.transformer import WanConfig, WanInputs, WanTransformer
from omnimuse.models.wan.weights import FLOAT32, RULES
from tests.checkpoints import parts
from tests.distance import distance
from tests.drawn import draw
from tests.watch import idle

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

SEEING = TINY | {"image_dim": 28, "added_kv_proj_dim": 48, "in_channels": 9}
PLACES = {"no places": None, "places for two pictures": 14}
CONTEXT = 512
"""Text tokens, whose number the reference takes for granted where it finds the tokens of pictures before them."""

Case = list[tuple[Tensor, Tensor, Tensor]]
"""Latents [4, f, h, w], times ([1], or one per frame) and text features [L, 20] of every row."""


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


def ours(folder: Path, dtype: torch.dtype, config: dict[str, object] = TINY) -> WanTransformer:
    network = construct(partial(WanTransformer.from_config, config))
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
    assert not idle(network, lambda: network(rows_of(network, case))[0])


def test_selected_conditions_are_those_of_the_rows_alone_where_pictures_are_seen(seeing):
    config, folder = seeing
    network, conds = ours(folder, torch.float32, config), []

    class Watch:
        def __call__(self, blocks, hidden, cond, memories=None):
            conds.append(cond)
            return hidden

    network.blocks.runner = Watch()
    case = [(draw(i, 9, *x.shape[1:]), t, text) for i, (x, t, text) in enumerate(make(SIZES["one row"] * 3))]
    rows = with_pictures(network, case)
    network(rows)
    network([rows[2], rows[0]])
    chosen, expected = conds[0].select([2, 0]), conds[1]
    assert torch.equal(chosen.image, expected.image)
    assert chosen.image_layout == expected.image_layout


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


@pytest.fixture(scope="module", params=PLACES.values(), ids=PLACES.keys())
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    """The configuration and the folder of a network that sees pictures."""
    config = SEEING | {"pos_embed_seq_len": request.param}
    folder = tmp_path_factory.mktemp("wan_seeing")
    parts.save_module(folder, "transformer", 1, partial(WanTransformer3DModel, **config))
    return config, folder / "transformer"


def seen(row: int) -> Tensor:
    """What an image encoder sees: 14 tokens."""
    return 3 * draw(90 + row, 14, 28)


def with_pictures(network: WanTransformer, case: Case) -> list[WanInputs]:
    return [WanInputs(x, t, network.prepare(text, *x.shape[1:], seen=seen(i))) for i, (x, t, text) in enumerate(case)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[(2, 4, 6)], [(2, 4, 6)] * 2, [(2, 4, 6), (1, 2, 2), (5, 6, 4)]])
def test_pictures_are_seen_as_in_the_reference_however_rows_share_a_forward(seeing, sizes, dtype):
    config, folder = seeing
    reference, network = theirs(folder, dtype), ours(folder, dtype, config)
    case = [
        (draw(i, 9, *size), t, text)
        for i, (size, (_, t, text)) in enumerate(zip(sizes, make([(*s, CONTEXT) for s in sizes]), strict=True))
    ]
    for i, (found, (x, t, text)) in enumerate(zip(network(with_pictures(network, case)), case, strict=True)):
        looked = seen(i).view(2 if config["pos_embed_seq_len"] else 1, -1, 28)
        x, text, looked = (each.to(dtype) for each in (x[None], text[None], looked))
        wanted = reference(x, t, text, looked, return_dict=False)[0][0]
        assert found.shape == (4, *sizes[i])
        assert distance(found, wanted) < (2e-6 if dtype is torch.float32 else 5e-3)


def test_parts_that_stay_in_float32_are_the_references_where_pictures_are_seen(seeing):
    config, folder = seeing
    reference, network = theirs(folder, torch.bfloat16), ours(folder, torch.bfloat16, config)
    counts = [
        sum(weight.numel() for weight in each.parameters() if weight.dtype == torch.float32)
        for each in (reference, network)
    ]
    assert counts[0] == counts[1]


def test_every_weight_of_a_network_that_sees_pictures_matters(seeing):
    config, folder = seeing
    network = ours(folder, torch.float32, config)
    case = [(draw(0, 9, 2, 4, 6), t, text) for _, t, text in make(SIZES["one row"])]
    assert not idle(network, lambda: network(with_pictures(network, case))[0])


def test_the_norms_of_queries_for_pictures_that_checkpoints_hold_and_the_reference_leaves_out_are_left_out(
    seeing, tmp_path
):
    config, folder = seeing
    copy = shutil.copytree(folder, tmp_path / "transformer")
    file = next(copy.glob("*.safetensors"))
    tensors = load_file(file)
    save_file(tensors | {f"blocks.{i}.attn2.norm_added_q.weight": draw(i, 48) for i in range(3)}, file)
    state, plain = (ours(place, torch.float32, config).state_dict() for place in (copy, folder))
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())


def test_beside_pictures_a_prompt_of_any_length_is_read_as_without_them(seeing):
    """The reference would take the first tokens of a short prompt for pictures, so here none of them is seen."""
    config, folder = seeing
    network, blind = ours(folder, torch.float32, config), WanTransformer3DModel(**(TINY | {"in_channels": 9})).eval()
    blind.load_state_dict(theirs(folder, torch.float32).state_dict(), strict=False)
    for block in network.blocks.blocks():
        block.cross_attention.to_image_kv.weight.zero_()
        block.cross_attention.to_image_kv.bias.zero_()
    case = [(draw(0, 9, 2, 4, 6), t, text) for _, t, text in make(SIZES["one row"])]
    [found] = network(with_pictures(network, case))
    assert distance(found, expected(blind, case[0])) < 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_dim": 1280}, r"image_dim=1280, added_kv_proj_dim=None; .* as wide as its tokens \(48\)"),
        ({"added_kv_proj_dim": 48}, r"image_dim=None, added_kv_proj_dim=48"),
        ({"image_dim": 1280, "added_kv_proj_dim": 64}, r"image_dim=1280, added_kv_proj_dim=64"),
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
