"""Every registered pipeline against the reference implementation: same weights, noise and parameters, float32."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimuse import Config, ModelConfig, Omni
from tests.checkpoints.families import FAMILIES, Family, Wish

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.build(tmp_path_factory.mktemp("parity") / "tiny")


def ours(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    """All wishes in flight together."""
    prompts = [wish.asked for wish in wishes]
    params = [replace(wish.params, output_type=output_type) for wish in wishes]  # type: ignore[arg-type]
    config = Config(ModelConfig(str(folder), dtype="float32", device="cpu"))
    with Omni(str(folder), config=config) as omni:
        results = omni.generate(prompts, params, progress=False)
    for result in results:
        assert result.error is None, result.error
    return [result.output[0] for result in results]


def reference(family: Family, folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        return family.reference(folder, wishes, output_type)


def test_different_requests_in_flight_give_the_references_latents(family: Family, folder: Path) -> None:
    wishes = list(family.wishes)
    for expected, found in zip(
        reference(family, folder, wishes, "latent"), ours(folder, wishes, "latent"), strict=True
    ):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) <= TOLERANCE


def test_different_requests_in_flight_give_the_references_pictures(family: Family, folder: Path) -> None:
    wishes = list(family.wishes)
    for expected, found in zip(reference(family, folder, wishes, "pt"), ours(folder, wishes, "pt"), strict=True):
        assert float((found - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("index", [0, 1, 2, -1])
def test_one_request_alone_gives_the_references_picture(family: Family, folder: Path, index: int) -> None:
    wishes = [family.wishes[index]]
    [expected], [found] = reference(family, folder, wishes, "pt"), ours(folder, wishes, "pt")
    assert float((found - expected).abs().max()) <= TOLERANCE


def test_a_wrong_guidance_scale_would_be_noticed(family: Family, folder: Path) -> None:
    wish = family.wishes[0]
    scales = {name: getattr(wish.params, name) for name in ("guidance_scale", "true_cfg_scale")}
    off = replace(wish, params=replace(wish.params, **{name: scale * 1.1 for name, scale in scales.items() if scale}))
    assert off != wish
    [expected], [found] = reference(family, folder, [wish], "pt"), ours(folder, [off], "pt")
    assert float((found - expected).abs().max()) > 100 * TOLERANCE
    assert torch.isfinite(found).all()
