"""Our FLUX.2 transformer, and the language model that reads Klein's texts, against the references', in float32.

Every weight is redrawn. Ours are loaded by the same rules as a published checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from torch import Tensor
from transformers import Qwen3ForCausalLM

from omnimuse.core.errors import ModelError
from omnimuse.diffusion.schedules import FlowSchedule
from omnimuse.layers.stack import Memory
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.weights import load_weights
from omnimuse.models.flux2.pipeline import empirical_mu
from omnimuse.models.flux2.spec import LAYERS
from omnimuse.models.flux2.text_encoder import RULES as TEXT_RULES
from omnimuse.models.flux2.text_encoder import KleinTextEncoder
from omnimuse.models.flux2.transformer import Flux2Config, Flux2Inputs, Flux2Transformer
from omnimuse.models.flux2.weights import RULES
from omnimuse.pipeline.text import HiddenStates
from tests.checkpoints import flux2, parts
from tests.distance import distance
from tests.drawn import draw
from tests.watch import idle

CHANNELS, WIDTH, GUIDANCE = 4 * flux2.CHANNELS, 3 * flux2.TEXT_WIDTH, 3.5


@pytest.fixture(scope="module", params=[True, False], ids=["guidance embedding", "none"])
def reference(request: pytest.FixtureRequest) -> Flux2Transformer2DModel:
    return parts.filled("transformer", 0, flux2.transformer(request.param)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(reference: Flux2Transformer2DModel) -> Flux2Transformer:
    model = Flux2Transformer.from_config(reference.config).eval().requires_grad_(False)
    model.load_state_dict(parts.translated(reference.state_dict(), RULES))
    return model


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


Size = tuple[int, int]
Row = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def case(rows: Sequence[tuple[int, list[Size]]]) -> list[Row]:
    """Latents, text features, time and pictures for rows of (text tokens, sizes: of the latents, of pictures)."""
    times = torch.linspace(0.95, 0.05, len(rows))
    made = []
    for row, (tokens, sizes) in enumerate(rows):
        latents, *shown = (draw(10 * row + i, CHANNELS, h, w) for i, (h, w) in enumerate(sizes))
        made.append((latents, 3 * draw(50 + row, tokens, WIDTH), times[row], shown))
    return made


def rows_of(network: Flux2Transformer, rows: list[Row]) -> list[Flux2Inputs]:
    return [Flux2Inputs(x, t, network.prepare(text, GUIDANCE, *x.shape[1:], shown)) for x, text, t, shown in rows]


def theirs(model: Flux2Transformer2DModel, latents: Tensor, text: Tensor, t: Tensor, shown: list[Tensor]) -> Tensor:
    """The reference's prediction of one row, as its pipeline calls it."""
    pipe = Flux2KleinPipeline
    hidden = torch.cat([pipe._pack_latents(x[None]) for x in (latents, *shown)], dim=1)  # [1, S, C]
    places = pipe._prepare_latent_ids(latents[None])
    if shown:
        places = torch.cat([places, pipe._prepare_image_ids([x[None] for x in shown])], dim=1)
    velocity = model(
        hidden_states=hidden,
        encoder_hidden_states=text[None],
        timestep=t[None],
        guidance=torch.full([1], GUIDANCE) if model.config.guidance_embeds else None,
        img_ids=places,
        txt_ids=pipe._prepare_text_ids(text[None]),
        return_dict=False,
    )[0][0]
    return velocity[: latents[0].numel()].T.reshape(latents.shape)


SIZES: dict[str, list[tuple[int, list[Size]]]] = {
    "one row": [(9, [(4, 6)])],
    "one row that is shown pictures": [(9, [(4, 6), (3, 5), (7, 2)])],
    "equal rows": [(9, [(4, 6), (2, 3)])] * 3,
    "equal sums of other parts": [(9, [(4, 6)]), (9, [(2, 6), (3, 4)]), (21, [(1, 12)])],
    "every row of its own size": [(9, [(4, 6)]), (64, [(1, 1), (8, 8), (3, 2)]), (1, [(8, 10)])],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_predictions_equal_the_reference_however_rows_share_a_forward(reference, network, sizes):
    rows = case(sizes)
    for ours, (latents, *rest) in zip(network(rows_of(network, rows)), rows, strict=True):
        assert ours.shape == latents.shape
        assert distance(ours, theirs(reference, latents, *rest)) < 1e-5


def test_the_order_of_pictures_matters(network):
    [(latents, text, t, shown)] = case(SIZES["one row that is shown pictures"])
    there, back = (network(rows_of(network, [(latents, text, t, order)]))[0] for order in (shown, shown[::-1]))
    assert distance(there, back) > 1e-3


def test_half_precision_follows_the_reference(reference, network):
    half, ours = (model.to(torch.bfloat16) for model in (reference, network))
    try:
        latents, text, t, shown = case(SIZES["one row that is shown pictures"])[0]
        row = (latents.bfloat16(), text.bfloat16(), t.bfloat16(), [x.bfloat16() for x in shown])
        (actual,) = ours(rows_of(ours, [row]))
        expected = theirs(half, *row)
    finally:
        reference.float(), network.float()
    assert actual.dtype == torch.bfloat16
    assert distance(actual.float(), expected.float()) < 1e-2


def test_every_weight_of_ours_matters(network):
    rows = case(SIZES["one row that is shown pictures"])
    assert not idle(network, lambda: network(rows_of(network, rows))[0])


class Watch:
    """A runner that keeps what it is given and runs nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def __call__(self, blocks, hidden, cond, memories=None):
        self.seen.append((blocks, hidden, cond, memories))
        return hidden


def test_selected_conditions_are_those_of_the_rows_alone(network):
    rows = rows_of(network, case(SIZES["every row of its own size"]))
    plain, watch = network.stack.runner, Watch()
    network.stack.runner = watch
    for batch in (rows, [rows[2], rows[0]]):
        network(batch, [Memory(step=row) for row in range(len(batch))])
    network.stack.runner = plain
    (_, _, cond, _), (_, hidden, alone, _) = watch.seen
    chosen = cond.select([2, 0])
    assert (chosen.layout, chosen.text, chosen.image) == (alone.layout, alone.text, alone.image)
    assert torch.equal(chosen.rope, alone.rope)
    assert chosen.shared.keys() == {"text", "image", "single"}
    for kind, mods in chosen.shared.items():
        assert torch.allclose(mods, alone.shared[kind], atol=1e-5)
    assert torch.equal(chosen.join(*chosen.split(hidden)), hidden)


@pytest.mark.parametrize("tokens", [1, 256, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_shift_is_the_references_to_the_bit(tokens: int, steps: int) -> None:
    assert empirical_mu(FlowSchedule(), tokens, steps) == compute_empirical_mu(tokens, steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 is not supported; only 1 is"),
        ({"out_channels": 8}, "out_channels=8 is not supported; only 32 is"),
        ({"axes_dims_rope": [4, 6, 6]}, r"axes_dims_rope=\(4, 6, 6\), attention_head_dim=16"),
        ({"eps": 1e-5}, "eps=1e-05 is not supported"),
        ({"flow_capacitor": 88}, "unknown key 'flow_capacitor'"),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(change, message):
    with pytest.raises(ModelError, match=message):
        Flux2Config.from_dict(dict(flux2.transformer().config) | change)


# -- the language model ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    parts.save_module(folder, "text_encoder", 3, lambda: flux2.text_encoder(100))
    return folder / "text_encoder"


def test_the_language_model_reads_as_the_reference_and_has_no_layer_that_nobody_reads(reader: Path) -> None:
    model = Qwen3ForCausalLM.from_pretrained(reader, dtype=torch.float32)
    encoder = construct(partial(KleinTextEncoder.from_config, json.loads((reader / "config.json").read_text())))
    load_weights(encoder, reader, TEXT_RULES, DtypePolicy(torch.float32), "cpu")
    assert (len(encoder.layers), len(model.model.layers)) == (LAYERS[-1], 29)
    ids = torch.randint(0, 100, (1, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < 13).long()[None]
    expected, found = (
        HiddenStates(LAYERS)(each(ids, attention_mask=mask, output_hidden_states=True)) for each in (model, encoder)
    )
    assert found.shape == (20, 3 * flux2.TEXT_WIDTH)
    assert distance(found, expected) < 1e-5


def test_hidden_states_can_be_taken_in_any_order(reader: Path) -> None:
    encoder = construct(partial(KleinTextEncoder.from_config, json.loads((reader / "config.json").read_text())))
    load_weights(encoder, reader, TEXT_RULES, DtypePolicy(torch.float32), "cpu")
    states = encoder(torch.arange(5)[None]).hidden_states
    late, early = states[27], states[3]
    assert torch.equal(states[3], early)
    assert torch.equal(states[-1], late)


def test_a_language_model_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    flux2.text_encoder(10, layers=26).config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="num_hidden_layers=26; what layer 27 makes is read"):
        KleinTextEncoder.from_config(json.loads((tmp_path / "config.json").read_text()))
