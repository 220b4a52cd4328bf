"""Our Z-Image transformer against diffusers', with tiny random weights in float32.

Every weight is redrawn, so that no forgotten norm, bias, gate or pad token can hide behind a 0 or a 1. Ours
is loaded by the same rules as a published checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from omnimuse.core.errors import ModelError, RequestError
from omnimuse.layers.stack import Memory
from omnimuse.models.z_image.transformer import ZImageConfig, ZImageInputs, ZImageTransformer
from omnimuse.models.z_image.weights import RULES
from tests.checkpoints import parts
from tests.distance import distance
from tests.drawn import draw
from tests.watch import idle

TINY = {
    "in_channels": 4,
    "dim": 48,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 20,
    "axes_dims": [4, 6, 6],
    "axes_lens": [160, 32, 32],
}


@pytest.fixture(scope="module")
def reference() -> ZImageTransformer2DModel:
    model = ZImageTransformer2DModel(**TINY).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.copy_(0.05 * noise)
        elif weight.ndim == 1:
            weight.copy_(1 + 0.1 * noise)
        elif name.endswith("pad_token"):
            weight.copy_(noise)
        else:
            weight.copy_(noise * weight.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def network(reference: ZImageTransformer2DModel) -> ZImageTransformer:
    model = ZImageTransformer.from_config(reference.config).eval().requires_grad_(False)
    model.load_state_dict(parts.translated(reference.state_dict(), RULES))
    return model


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def case(sizes: Sequence[tuple[int, int, int]]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Latents, text features and times for rows of (height, width, text tokens)."""
    latents = [draw(10 + row, TINY["in_channels"], h, w) for row, (h, w, _) in enumerate(sizes)]
    features = [3 * draw(50 + row, tokens, TINY["cap_feat_dim"]) for row, (_, _, tokens) in enumerate(sizes)]
    return latents, features, torch.linspace(0.05, 0.95, len(sizes))


def rows_of(network: ZImageTransformer, latents, features, times) -> list[ZImageInputs]:
    return [
        ZImageInputs(x, t, network.prepare(text, *x.shape[1:]))
        for x, text, t in zip(latents, features, times, strict=True)
    ]


SIZES = {
    "one row": [(8, 12, 9)],
    "one row without any padding": [(16, 16, 32)],
    "equal rows": [(8, 12, 9)] * 3,
    "equal images, captions of other lengths": [(8, 12, 9), (8, 12, 40), (8, 12, 33)],
    "every row of its own size": [(8, 12, 9), (2, 2, 64), (16, 20, 1), (16, 16, 32)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_predictions_equal_the_reference_however_rows_share_a_forward(reference, network, sizes):
    latents, features, times = case(sizes)
    ours = network(rows_of(network, latents, features, times))
    for row, (x, text, t) in enumerate(zip(latents, features, times, strict=True)):
        (alone,) = reference([x[:, None]], t[None], [text]).sample
        assert ours[row].shape == x.shape
        assert distance(ours[row], alone[:, 0]) < 1e-5
    batched = reference([x[:, None] for x in latents], times, features).sample
    assert max(distance(a, b[:, 0]) for a, b in zip(ours, batched, strict=True)) < 1e-5


def test_half_precision_follows_the_reference(reference, network):
    half, ours = (model.to(torch.bfloat16) for model in (reference, network))
    try:
        latents, features, times = case(SIZES["one row"])
        (expected,) = half([latents[0].bfloat16()[:, None]], times, [features[0].bfloat16()]).sample
        (actual,) = ours(rows_of(ours, latents, features, times))
    finally:
        reference.float(), network.float()
    assert actual.dtype == torch.bfloat16
    assert distance(actual.float(), expected[:, 0].float()) < 1e-2


def test_every_weight_of_ours_matters(network):
    latents, features, times = case(SIZES["one row"])
    assert not idle(network, lambda: network(rows_of(network, latents, features, times))[0])


def test_stacks_are_those_that_run_at_every_step(network):
    assert {name: len(stack) for name, stack in network.stacks().items()} == {"noise_refiner": 2, "layers": 3}


def test_the_probe_is_what_the_first_attention_sees(network):
    seen = []

    class Watch:
        def __call__(self, blocks, hidden, cond, memories=None):
            inner = blocks[0].attention.forward
            blocks[0].attention.forward = lambda x, cond: (seen.append(x), inner(x, cond))[1]
            output = blocks[0](hidden, cond)
            del blocks[0].attention.forward
            assert torch.equal(seen[0], blocks[0].probe(hidden, cond))
            assert [memory.step for memory in memories] == [3, 4]
            return output

    network.layers.runner, plain = Watch(), network.layers.runner
    latents, features, times = case(SIZES["every row of its own size"][:2])
    network(rows_of(network, latents, features, times), [Memory(step=3), Memory(step=4)])
    network.layers.runner = plain
    assert len(seen) == 1


def test_selected_conditions_are_those_of_the_rows_alone(network):
    taken = []

    class Watch:
        def __call__(self, blocks, hidden, cond, memories=None):
            taken.append((cond, hidden))
            return hidden

    network.layers.runner, plain = Watch(), network.layers.runner
    rows = rows_of(network, *case(SIZES["every row of its own size"]))
    network(rows)
    network([rows[2], rows[0]])
    network.layers.runner = plain
    (cond, _), (alone, _) = taken
    chosen = cond.select([2, 0])
    assert chosen.layout == alone.layout
    assert torch.equal(chosen.rope, alone.rope)
    assert torch.allclose(chosen.time, alone.time, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siglip_feat_dim": 8}, "siglip_feat_dim=8 is not supported"),
        ({"qk_norm": False}, "qk_norm=False is not supported"),
        ({"all_patch_size": [2, 4]}, r"all_patch_size=\[2, 4\] is not supported; only \[2\] is"),
        ({"n_kv_heads": 1}, "n_kv_heads=1 is not supported; only 3 is"),
        ({"n_heads": 4, "n_kv_heads": 4}, "n_heads=4"),
        ({"flux_capacitor": 88}, "unknown key 'flux_capacitor'"),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(change, message):
    with pytest.raises(ModelError, match=message):
        ZImageConfig.from_dict(TINY | change)


def test_a_request_beyond_the_positions_of_the_checkpoint_is_refused(network):
    text = torch.zeros(9, TINY["cap_feat_dim"])
    with pytest.raises(RequestError, match="even sizes"):
        network.prepare(text, 7, 8)
    with pytest.raises(RequestError, match=r"\(34, 33, 4\) positions"):
        network.prepare(text, 66, 8)
    network.prepare(text, 64, 64)
    with pytest.raises(RequestError, match="shorter prompt"):
        network.prepare(text.repeat(18, 1), 8, 8)
