"""Choices that would do nothing beside the others are refused, for every family."""

from __future__ import annotations

import pytest

from omnimuse.core.params import DiffusionParams
from omnimuse.models import REGISTRY

P = DiffusionParams


@pytest.mark.parametrize(
    ("arch", "negative", "params", "words"),
    [
        ("ZImagePipeline", "blurry", P(guidance_scale=0.0), "guidance_scale is 0"),
        ("FluxPipeline", "blurry", P(true_cfg_scale=1.0), "true_cfg_scale is 1"),
        ("FluxPipeline", None, P(true_cfg_scale=4.0), "needs a negative_prompt"),
        ("WanPipeline", "blurry", P(guidance_scale=1.0), "guidance_scale is 1"),
    ],
)
def test_guidance_without_its_other_half_is_refused(arch: str, negative: str | None, params: P, words: str) -> None:
    assert words in str(REGISTRY.spec(arch).refusal(negative, params))


@pytest.mark.parametrize(
    ("arch", "negative", "params"),
    [
        ("ZImagePipeline", "blurry", P(guidance_scale=2.0)),
        ("ZImagePipeline", None, P(guidance_scale=0.0)),
        ("FluxPipeline", "", P(true_cfg_scale=4.0)),
        ("FluxPipeline", "", P()),
        ("FluxPipeline", None, P(true_cfg_scale=1.0)),
        ("WanPipeline", "blurry", P(guidance_scale=1.0, guidance_scale_2=3.0)),
        ("WanPipeline", None, P(guidance_scale=1.0)),
    ],
)
def test_combinations_that_work_are_let_in(arch: str, negative: str | None, params: P) -> None:
    assert REGISTRY.spec(arch).refusal(negative, params) is None
