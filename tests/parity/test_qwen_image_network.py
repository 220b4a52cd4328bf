"""Our Qwen-Image transformer against diffusers', with tiny random weights; ours is loaded by the same rules.

Whole pictures are compared in `test_pipelines.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from diffusers import QwenImageLayeredPipeline, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from omnimuse.components.two_streams import TwoStreamInputs
from omnimuse.core.errors import ModelError
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.models.qwen_image.transformer import QwenConfig, QwenTransformer
from omnimuse.models.qwen_image.weights import RULES
from tests.checkpoints import parts, qwen_image
from tests.distance import distance
from tests.drawn import draw
from tests.watch import idle


@pytest.fixture(scope="module")
def reference() -> QwenImageTransformer2DModel:
    model = qwen_image.transformer()
    randomise(model, 0, "transformer", DtypePolicy(torch.float32), "cpu")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network(reference: QwenImageTransformer2DModel) -> QwenTransformer:
    model = QwenTransformer.from_config(reference.config).eval().requires_grad_(False)
    model.load_state_dict(parts.translated(reference.state_dict(), RULES))
    return model


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


Case = list[tuple[Tensor, Tensor, Tensor]]


def case(sizes: Sequence[tuple[int, int, int]]) -> Case:
    """Latents, text features and time for rows of (height, width, text tokens)."""
    times = torch.linspace(0.95, 0.05, len(sizes))
    return [
        (draw(10 + row, 16, h, w), 3 * draw(50 + row, tokens, qwen_image.TEXT_WIDTH), times[row])
        for row, (h, w, tokens) in enumerate(sizes)
    ]


def ours(network: QwenTransformer, rows: Case) -> list[Tensor]:
    return network([TwoStreamInputs(x, t, network.prepare(text, *x.shape[1:])) for x, text, t in rows])


def theirs(model: QwenImageTransformer2DModel, latents: Tensor, text: Tensor, t: Tensor) -> Tensor:
    """The reference's prediction of one row, as its pipeline calls it."""
    c, h, w = latents.shape
    packed = QwenImagePipeline._pack_latents(latents[None], 1, c, h, w)  # [1, S, 4c]
    shapes = [[(1, h // 2, w // 2)]]
    (velocity,) = model(packed, text[None], None, t[None], shapes, return_dict=False)
    return QwenImagePipeline._unpack_latents(velocity, h * 8, w * 8, 8)[0, :, 0]


@pytest.mark.parametrize(
    "sizes",
    [[(8, 12, 9)], [(8, 12, 9), (2, 2, 64), (16, 6, 1)], [(6, 10, 5)] * 2, [(2, 300, 3)], [(2, 2, 700)]],
    ids=["one row", "rows of any size", "equal rows", "a wide picture", "a long text"],
)
def test_predictions_equal_the_reference_however_rows_share_a_forward(
    reference: QwenImageTransformer2DModel, network: QwenTransformer, sizes: list[tuple[int, int, int]]
) -> None:
    rows = case(sizes)
    for found, row in zip(ours(network, rows), rows, strict=True):
        assert distance(found, theirs(reference, *row)) < 1e-5


@pytest.fixture(scope="module", params=[False, True], ids=["in time", "standing still"])
def editing(request: pytest.FixtureRequest) -> tuple[QwenImageTransformer2DModel, QwenTransformer]:
    """Both networks, which are shown pictures."""
    model = qwen_image.transformer(zero_cond_t=request.param)
    randomise(model, 0, "transformer", DtypePolicy(torch.float32), "cpu")
    network = QwenTransformer.from_config(model.config).eval().requires_grad_(False)
    network.load_state_dict(parts.translated(model.state_dict(), RULES))
    return model.eval().requires_grad_(False), network


SHOWN: list[list[tuple[int, int]]] = [[(6, 8)], [], [(4, 4), (20, 2)]]


@pytest.mark.parametrize("sizes", [[(8, 12, 9), (2, 2, 64), (16, 6, 1)], [(6, 10, 5)] * 3], ids=["any", "equal"])
def test_pictures_that_are_shown_are_seen_as_in_the_reference(
    editing: tuple[QwenImageTransformer2DModel, QwenTransformer], sizes: list[tuple[int, int, int]]
) -> None:
    model, network = editing
    rows = case(sizes)
    shown = [[draw(90 + h, 16, h, w) for h, w in pictures] for pictures in SHOWN]
    found = network(
        [
            TwoStreamInputs(x, t, network.prepare(text, *x.shape[1:], pictures))
            for (x, text, t), pictures in zip(rows, shown, strict=True)
        ]
    )
    for (latents, text, t), pictures, ours in zip(rows, shown, found, strict=True):
        packed = [QwenImagePipeline._pack_latents(x[None], 1, *x.shape) for x in (latents, *pictures)]
        shapes = [[(1, x.shape[1] // 2, x.shape[2] // 2) for x in (latents, *pictures)]]
        (velocity,) = model(torch.cat(packed, dim=1), text[None], None, t[None], shapes, return_dict=False)
        _, h, w = latents.shape
        velocity = velocity[:, : packed[0].shape[1]]
        assert distance(ours, QwenImagePipeline._unpack_latents(velocity, h * 8, w * 8, 8)[0, :, 0]) < 1e-5


def test_layers_are_drawn_together_as_in_the_reference() -> None:
    model = qwen_image.transformer(use_layer3d_rope=True, use_additional_t_cond=True)
    randomise(model, 0, "transformer", DtypePolicy(torch.float32), "cpu")
    model.eval().requires_grad_(False)
    network = QwenTransformer.from_config(model.config).eval().requires_grad_(False)
    network.load_state_dict(parts.translated(model.state_dict(), RULES))
    rows, wanted = [], []
    for row, (frames, h, w) in enumerate([(3, 8, 12), (1, 2, 2), (9, 4, 6)]):
        latents, shown = draw(row, 16, frames, h, w), draw(90 + row, 16, h, w)
        text, t = 3 * draw(50 + row, 5 + row, qwen_image.TEXT_WIDTH), torch.tensor(0.2 + 0.3 * row)
        rows.append(TwoStreamInputs(latents, t, network.prepare(text, h, w, [shown], frames)))
        assert rows[-1].static.text_tokens == len(text) + frames * h * w // 4, "and what is shown"
        pictures = [*latents.unbind(1), shown]
        packed = torch.cat([QwenImagePipeline._pack_latents(x[None], 1, *x.shape) for x in pictures], dim=1)
        shapes, kind = [[(1, h // 2, w // 2)] * len(pictures)], torch.tensor([0])
        (velocity,) = model(packed, text[None], None, t[None], shapes, additional_t_cond=kind, return_dict=False)
        velocity = velocity[:, : frames * h * w // 4]
        wanted.append(QwenImageLayeredPipeline._unpack_latents(velocity, h * 8, w * 8, frames - 1, 8)[0])
    for found, expected in zip(network(rows), wanted, strict=True):
        assert distance(found, expected) < 1e-5


def test_half_precision_follows_the_reference(reference: QwenImageTransformer2DModel, network: QwenTransformer) -> None:
    half = (reference.to(torch.bfloat16), network.to(torch.bfloat16))
    try:
        [(latents, text, t)] = [tuple(part.bfloat16() for part in row) for row in case([(8, 12, 9)])]
        expected, [found] = theirs(half[0], latents, text, t), ours(half[1], [(latents, text, t)])
    finally:
        reference.float(), network.float()
    assert found.dtype == torch.bfloat16
    assert distance(found.float(), expected.float()) < 2e-2


def test_every_weight_matters_but_those_of_the_text_after_the_last_attention(network: QwenTransformer) -> None:
    rows = case([(8, 12, 9)])
    unused = idle(network, lambda: ours(network, rows)[0])
    last = "stack.double_blocks.1.text."
    expected = {f"{last}{part}.{kind}" for part in ("to_out", "mlp.0", "mlp.2") for kind in ("weight", "bias")}
    assert set(unused) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 1}, "patch_size=1 is not supported; only 2 is"),
        ({"out_channels": 8}, "out_channels=8 is not supported; only 16 is"),
        ({"guidance_embeds": True}, "guidance_embeds=True is not supported"),
        ({"axes_dims_rope": [4, 6]}, r"axes_dims_rope=\(4, 6\), attention_head_dim=16"),
        ({"flow_capacitor": 88}, "unknown key 'flow_capacitor'"),
    ],
)
def test_a_configuration_of_another_variant_is_refused_with_its_value(
    reference: QwenImageTransformer2DModel, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        QwenConfig.from_dict({**reference.config, **change})
