"""Our FLUX.1 transformer against diffusers', with tiny random weights in float32.

Every weight is redrawn, so that no forgotten norm, bias or gate can hide behind a 0 or a 1. Ours is loaded by the same
rules as a published checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.models.flux.transformer import FluxConfig, FluxInputs, FluxTransformer
from omnimuse.models.flux.weights import RULES
from tests.checkpoints import parts
from tests.distance import distance
from tests.drawn import draw
from tests.watch import idle, watched

TINY = {
    "patch_size": 1,
    "in_channels": 16,
    "out_channels": None,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "axes_dims_rope": [4, 6, 6],
}
GUIDANCE = 3.5


def make_reference(guidance_embeds: bool) -> FluxTransformer2DModel:
    model = FluxTransformer2DModel(**TINY, guidance_embeds=guidance_embeds).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.copy_(0.05 * noise)
        else:
            weight.copy_(1 + 0.1 * noise if weight.ndim == 1 else noise * weight.shape[1] ** -0.5)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["guidance embedding", "none"])
def reference(request: pytest.FixtureRequest) -> FluxTransformer2DModel:
    return make_reference(request.param)


@pytest.fixture(scope="module")
def network(reference: FluxTransformer2DModel) -> FluxTransformer:
    model = FluxTransformer.from_config(reference.config).eval().requires_grad_(False)
    model.load_state_dict(parts.translated(reference.state_dict(), RULES))
    return model


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


Case = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def case(sizes: Sequence[tuple[int, int, int]]) -> Case:
    """Latents, text features, pooled text and time for rows of (height, width, text tokens)."""
    times = torch.linspace(0.95, 0.05, len(sizes))
    return [
        (draw(10 + row, 4, h, w), 3 * draw(50 + row, tokens, 20), draw(90 + row, 12), times[row])
        for row, (h, w, tokens) in enumerate(sizes)
    ]


def rows_of(network: FluxTransformer, rows: Case) -> list[FluxInputs]:
    return [FluxInputs(x, t, network.prepare((text, pooled), GUIDANCE, x.shape[1:])) for x, text, pooled, t in rows]


def theirs(model: FluxTransformer2DModel, latents: Tensor, text: Tensor, pooled: Tensor, t: Tensor) -> Tensor:
    """The reference's prediction of one row, as its pipeline calls it."""
    c, h, w = latents.shape
    dtype = text.dtype
    packed = FluxPipeline._pack_latents(latents[None], 1, c, h, w)  # [1, S, 4c]
    guidance = torch.full([1], GUIDANCE) if model.config.guidance_embeds else None
    (velocity,) = model(
        hidden_states=packed,
        encoder_hidden_states=text[None],
        pooled_projections=pooled[None],
        timestep=t[None],
        img_ids=FluxPipeline._prepare_latent_image_ids(1, h // 2, w // 2, "cpu", dtype),
        txt_ids=torch.zeros(len(text), 3, dtype=dtype),
        guidance=guidance,
        return_dict=False,
    )
    return FluxPipeline._unpack_latents(velocity, h * 8, w * 8, 8)[0]


SIZES = {
    "one row": [(8, 12, 9)],
    "equal rows": [(8, 12, 9)] * 3,
    "equal texts, images of other sizes": [(8, 12, 9), (2, 2, 9), (8, 4, 9)],
    "equal images, texts of other lengths": [(8, 12, 9), (8, 12, 40), (8, 12, 1)],
    "equal sums of other parts": [(8, 12, 9), (4, 12, 21), (2, 2, 32)],
    "every row of its own size": [(8, 12, 9), (2, 2, 64), (16, 20, 1)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_predictions_equal_the_reference_however_rows_share_a_forward(reference, network, sizes):
    rows = case(sizes)
    for ours, (latents, *rest) in zip(network(rows_of(network, rows)), rows, strict=True):
        assert ours.shape == latents.shape
        assert distance(ours, theirs(reference, latents, *rest)) < 1e-5


def test_large_pictures_stand_where_the_reference_puts_them(reference, network):
    rows = case([(2, 512, 3)])
    assert distance(network(rows_of(network, rows))[0], theirs(reference, *rows[0])) < 1e-5


def test_half_precision_follows_the_reference(reference, network):
    half, ours = (model.to(torch.bfloat16) for model in (reference, network))
    try:
        rows = [tuple(part.bfloat16() for part in case(SIZES["one row"])[0])]
        (actual,) = ours(rows_of(ours, rows))
        expected = theirs(half, *rows[0])
    finally:
        reference.float(), network.float()
    assert actual.dtype == torch.bfloat16
    assert distance(actual.float(), expected.float()) < 1e-2


def test_every_weight_of_ours_matters(network):
    rows = case(SIZES["one row"])
    assert not idle(network, lambda: network(rows_of(network, rows))[0])


def test_double_and_single_blocks_are_one_stack(network):
    (stack,) = network.stacks().values()
    assert [type(block).__name__ for block in stack.blocks()] == ["DoubleBlock"] * 2 + ["SingleBlock"] * 3


def test_the_probe_is_the_image_that_the_first_attention_sees(network):
    rows = rows_of(network, case(SIZES["every row of its own size"]))
    ((blocks, hidden, cond, memories),) = watched(network, rows)
    assert [memory.step for memory in memories] == [0, 1, 2]
    text, image = cond.split(blocks[0].probe(hidden, cond))
    assert not text.any()
    mods = blocks[0].image.modulate(cond, cond.image)
    heads = blocks[0].core.num_heads
    queries = blocks[0].image.enter(cond.split(hidden)[1], mods, heads)[0]
    assert torch.equal(blocks[0].image.qkv(image, heads)[0], queries)
    assert blocks[-1].probe(hidden, cond).shape == hidden.shape


def test_selected_conditions_are_those_of_the_rows_alone(network):
    rows = rows_of(network, case(SIZES["every row of its own size"]))
    (_, _, cond, _), (_, hidden, alone, _) = watched(network, rows, [rows[2], rows[0]])
    chosen = cond.select([2, 0])
    assert (chosen.layout, chosen.text, chosen.image) == (alone.layout, alone.text, alone.image)
    assert torch.equal(chosen.rope, alone.rope)
    assert torch.allclose(chosen.vector, alone.vector, atol=1e-6)
    assert torch.equal(chosen.join(*chosen.split(hidden)), hidden)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 is not supported; only 1 is"),
        ({"axes_dims_rope": [4, 6]}, r"axes_dims_rope=\(4, 6\), attention_head_dim=16"),
        ({"attention_head_dim": 18}, "attention_head_dim=18"),
        ({"flow_capacitor": 88}, "unknown key 'flow_capacitor'"),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(change, message):
    with pytest.raises(ModelError, match=message):
        FluxConfig.from_dict(TINY | change)
