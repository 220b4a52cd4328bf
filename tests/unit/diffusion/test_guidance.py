"""Guidance formulas against the reference pipelines' own lines, and what each kind evaluates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnimuse.diffusion.guidance import (
    Cfg,
    ExtrapolatedCfg,
    NoGuidance,
    cap_norm,
    cfg,
    cfg_extrapolated,
    match_norm_per_token,
)


@pytest.fixture
def pair() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(5, 4, 8, generator=generator) for name in ("positive", "negative")}


def test_scale_1_of_cfg_and_scale_0_of_the_extrapolated_kind_are_the_positive_prediction(
    pair: dict[str, Tensor],
) -> None:
    pos, neg = pair["positive"], pair["negative"]
    assert torch.allclose(cfg(pos, neg, 1.0), pos, atol=1e-6)
    assert torch.equal(cfg_extrapolated(pos, neg, 0.0), pos)


def test_the_two_conventions_differ_by_one_in_scale(pair: dict[str, Tensor]) -> None:
    pos, neg = pair["positive"], pair["negative"]
    assert torch.allclose(cfg(pos, neg, 5.0), cfg_extrapolated(pos, neg, 4.0), atol=1e-5)


@pytest.mark.parametrize("cap", [0.5, 1.0, 100.0])
def test_the_capped_kind_repeats_the_reference_pipeline_bit_for_bit(pair: dict[str, Tensor], cap: float) -> None:
    pos, neg = pair["positive"], pair["negative"]
    expected = pos + 4.0 * (pos - neg)  # as in diffusers' ZImagePipeline
    allowed = torch.linalg.vector_norm(pos) * cap
    if torch.linalg.vector_norm(expected) > allowed:
        expected = expected * (allowed / torch.linalg.vector_norm(expected))
    assert torch.equal(ExtrapolatedCfg(norm_cap=cap).combine(pair, 4.0), expected)


def test_the_norm_matched_kind_repeats_the_reference_pipeline_bit_for_bit(pair: dict[str, Tensor]) -> None:
    pos, neg = pair["positive"], pair["negative"]
    mixed = neg + 4.0 * (pos - neg)  # as in diffusers' QwenImagePipeline
    ratio = torch.norm(pos, dim=-1, keepdim=True) / torch.norm(mixed, dim=-1, keepdim=True)
    assert torch.equal(Cfg(match_norm=True).combine(pair, 4.0), mixed * ratio)


def test_a_cap_changes_only_what_is_too_long(pair: dict[str, Tensor]) -> None:
    pos = pair["positive"]
    assert torch.equal(cap_norm(pos, pos, 1.0), pos)
    assert torch.allclose(cap_norm(3 * pos, pos, 2.0), 2 * pos, rtol=1e-5)
    assert torch.equal(cap_norm(torch.zeros(3), torch.zeros(3), 1.0), torch.zeros(3))


def test_every_token_gets_its_own_norm_back(pair: dict[str, Tensor]) -> None:
    matched = match_norm_per_token(pair["negative"] * 7, pair["positive"])
    assert torch.allclose(matched.norm(dim=-1), pair["positive"].norm(dim=-1), rtol=1e-5)


@pytest.mark.parametrize("guidance", [NoGuidance(), Cfg(), Cfg(match_norm=True), ExtrapolatedCfg(norm_cap=1.0)])
def test_one_branch_alone_passes_through_in_float32(guidance: NoGuidance | Cfg | ExtrapolatedCfg) -> None:
    pos = torch.ones(2, 3, dtype=torch.bfloat16)
    assert torch.equal(guidance.combine({"positive": pos}, 0.0), torch.ones(2, 3))


def test_half_precision_branches_are_combined_in_float32(pair: dict[str, Tensor]) -> None:
    halves = {name: each.bfloat16() for name, each in pair.items()}
    expected = halves["negative"].float() + 4.0 * (halves["positive"].float() - halves["negative"].float())
    assert torch.equal(Cfg().combine(halves, 4.0), expected)


def test_each_kind_asks_for_the_negative_branch_only_where_it_counts() -> None:
    assert NoGuidance().branches(5.0, 500.0) == ("positive",)
    assert Cfg().branches(1.0, 500.0) == ("positive",)
    assert Cfg().branches(1.5, 500.0) == ("positive", "negative")
    assert ExtrapolatedCfg().branches(0.0, 500.0) == ("positive",)
    assert ExtrapolatedCfg().branches(0.5, 0.0) == ("positive", "negative")


def test_guidance_stops_once_the_truncation_has_passed() -> None:
    guidance = ExtrapolatedCfg(truncation=0.5)
    assert guidance.branches(5.0, 500.0) == ("positive", "negative")
    assert guidance.branches(5.0, 499.0) == ("positive",)
