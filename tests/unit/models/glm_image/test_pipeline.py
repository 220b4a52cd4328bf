"""What is peculiar to GLM-Image's diffusion: tokens that may be given, and words that count only between quotes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse import Config, ModelConfig, Omni
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Ask
from omnimuse.worker.find import find
from omnimuse.worker.warm_up import SMALL, warm_up_ask
from tests.checkpoints.glm_image import CODES, FAMILIES, build
from tests.checkpoints.wishes import photo

WISH = FAMILIES[0].wishes[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("glm") / "tiny")


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def prior(*tokens: int) -> Ask:
    return Ask(WISH.asked, replace(WISH.params, extra={"prior_token_ids": tokens}))


def test_tokens_that_do_not_fit_the_size_are_refused_before_any_work(folder: Path) -> None:
    door = find(Config(ModelConfig(str(folder)))).door
    with pytest.raises(RequestError, match=r"has 3 tokens, but 64x64 pixels are 16 patches of 16x16; give one token"):
        door.make_request(prior(1, 2, 3), 0.0, 1)
    of_pictures = {"prior_token_image_ids": (1, 2)}
    with pytest.raises(RequestError, match=r"prior_token_image_ids are given and extra\.prior_token_ids are not"):
        door.make_request(Ask(WISH.asked, replace(WISH.params, extra=of_pictures)), 0.0, 1)
    assert door.make_request(prior(*range(16)), 0.0, 1)
    assert door.make_request(Ask("a star"), 0.0, 1)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Omni]:
    """One whose checkpoint has no language model."""
    folder = build(tmp_path_factory.mktemp("glm") / "silent", writes=0)
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def test_without_a_language_model_the_tokens_must_be_given(omni: Omni, silent: Omni) -> None:
    params = replace(WISH.params, output_type="latent")
    without, given = silent.generate([WISH.asked] * 2, [replace(params, extra=None), params], progress=False)
    assert "this checkpoint has no language model (vision_language_encoder)" in str(without.error)
    [same] = omni.generate([WISH.asked], [params], progress=False)
    assert torch.equal(given.output, same.output)


def test_a_token_that_the_checkpoint_does_not_know_ends_its_own_request(omni: Omni) -> None:
    bad, good = omni.generate([WISH.asked] * 2, [prior(*[CODES] * 16).params, WISH.params], progress=False)
    assert "extra.prior_token_ids has 64; this checkpoint knows 0 to 63" in str(bad.error)
    assert good.error is None


def test_tokens_of_pictures_and_pictures_that_do_not_fit_each_other_end_their_own_request(silent: Omni) -> None:
    seen = replace(WISH.params, extra={**WISH.params.extra, "prior_token_image_ids": [1] * 6})  # type: ignore[dict-item]
    pictures = {**WISH.asked, "images": [photo(50, 40)]}
    without, alone, fitting = silent.generate(
        [pictures, WISH.asked, pictures], [WISH.params, seen, seen], progress=False
    )
    assert "prior_token_image_ids has 0 tokens, but the pictures have [6] patches" in str(without.error)
    assert "prior_token_image_ids has 6 tokens, but the pictures have [] patches" in str(alone.error)
    assert fitting.error is None
    assert fitting.shown == ((48, 32),)


def test_a_negative_prompt_is_refused(omni: Omni) -> None:
    with pytest.raises(RequestError, match="negative_prompt means nothing to this model"):
        omni.generate({"prompt": "a", "negative_prompt": "grey"}, WISH.params, progress=False)


def test_only_what_is_quoted_is_read(omni: Omni) -> None:
    prompts = ["a red circle", "two stars", 'a "star"', "a 'star'", "a “star” and 「a cross」"]
    params = replace(WISH.params, output_type="latent")
    made = [result.output for result in omni.generate(prompts, params, progress=False)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[2], made[3])
    assert not torch.allclose(made[0], made[2], atol=1e-3)
    assert not torch.allclose(made[2], made[4], atol=1e-3)


def test_a_worker_warms_up_with_tokens_of_no_meaning(folder: Path) -> None:
    ask = warm_up_ask(SMALL, find(Config(ModelConfig(str(folder)))).door)
    assert ask is not None
    assert (ask.params.width, len(ask.params.extra.prior_token_ids)) == (32, 4)  # type: ignore[union-attr]
