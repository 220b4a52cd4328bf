"""The batched training forward is ZImageTransformer2DModel's and Qwen3Model's own arithmetic."""

import random

import pytest
import torch

from tools.train_shapes.captions import caption
from tools.train_shapes.data import draw_scene
from tools.train_shapes.flat import FlatTrainer, Optimizer, cosine
from tools.train_shapes.network import (
    Network,
    build_text_encoder,
    build_transformer,
    from_patches,
    to_patches,
)
from tools.train_shapes.parallel import Rank
from tools.train_shapes.tokenizer import CaptionEncoder, train_tokenizer


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    transformer = build_transformer()
    for name, parameter in transformer.named_parameters():
        if "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return Network(build_text_encoder(550), transformer)


@torch.no_grad()
def test_the_batched_forward_equals_diffusers_and_transformers(network):
    ids, lengths = torch.randint(0, 550, (3, 32)), torch.tensor([20, 32, 9])
    mask = torch.arange(32) < lengths[:, None]
    z, t = torch.randn(3, 16, 16, 16), torch.rand(3)
    hidden = network.text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    captions = [row[:length] for row, length in zip(hidden, lengths, strict=True)]
    wanted = torch.stack(network.transformer([a[:, None] for a in z], t, captions, return_dict=False)[0])[:, :, 0]
    found = from_patches(network(to_patches(z), t, ids, mask, network.angles(32, 8)), 8)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_patches_come_back():
    z = torch.randn(2, 16, 16, 16)
    assert torch.equal(from_patches(to_patches(z), 8), z)


def test_captions_are_wrapped_as_the_pipeline_wraps_them_and_mostly_fit_32_tokens():
    encoder, rng = CaptionEncoder(train_tokenizer(count=500)), random.Random(0)
    assert encoder.wrap("a") == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    lengths = [len(encoder.ids(caption(draw_scene(rng), rng))) for _ in range(300)]
    assert sum(length <= 32 for length in lengths) > 0.85 * len(lengths)
    assert max(lengths) <= 96


def test_a_caption_too_long_for_its_bucket_is_refused():
    encoder = CaptionEncoder(train_tokenizer(count=100))
    with pytest.raises(ValueError, match="use a longer bucket"):
        encoder.batch(["a red circle " * 30], 32)


def test_flat_training_lowers_the_loss_and_resumes_where_it_was():
    def build():
        torch.manual_seed(0)
        return FlatTrainer({"m": torch.nn.Linear(3, 2)}, Rank(0, 1, "cpu"), Optimizer((0.9, 0.99), 0.9))

    def step(trainer):
        trainer.zero()
        loss = (trainer.modules["m"](torch.eye(3)) - 1).square().mean()
        loss.backward()
        trainer.reduce()
        trainer.step(0.05)
        return loss.item()

    first = build()
    losses = [step(first) for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]
    second = build()
    second.load({k: v.clone() for k, v in first.tensors().items()}, first.notes_to_keep())
    assert step(first) == step(second)
    assert torch.equal(first.average, second.average)


def test_the_rate_warms_up_and_decays_with_the_fraction():
    rates = [cosine(fraction, 1.0) for fraction in (0.0, 0.03, 0.5, 1.0)]
    assert rates[0] < 0.05
    assert rates[1] == 1.0
    assert 0.4 < rates[2] < 0.6
    assert rates[3] == pytest.approx(0.01)
