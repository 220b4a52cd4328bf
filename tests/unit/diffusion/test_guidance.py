"""Guidance formulas against the reference pipelines' own lines."""

from __future__ import annotations

import pytest
import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import FamilyParams
from omnimuse.diffusion.guidance import (
    cap_norm,
    cfg,
    cfg_extrapolated,
    combine,
    elapsed,
    match_norm_per_token,
)

NONE = FamilyParams()


def capped(cap: float) -> Guidance:
    return Guidance(neutral=0, how=lambda extra: Combination(norm_cap=cap))


def matched(patch: int) -> Guidance:
    return Guidance(how=lambda extra: Combination(match_norm=True, patch=patch))


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
    assert torch.equal(combine(capped(cap), NONE, pair, 4.0), expected)


def test_the_norm_matched_kind_repeats_the_reference_pipeline_on_tokens_that_are_patches() -> None:
    generator = torch.Generator().manual_seed(4)
    pair = {name: torch.randn(4, 6, 10, generator=generator) for name in ("positive", "negative")}
    pack, unpack = QwenImagePipeline._pack_latents, QwenImagePipeline._unpack_latents
    pos, neg = (pack(pair[name][None], 1, 4, 6, 10) for name in ("positive", "negative"))  # [1, S, 16]
    mixed = neg + 4.0 * (pos - neg)
    expected = mixed * (torch.norm(pos, dim=-1, keepdim=True) / torch.norm(mixed, dim=-1, keepdim=True))
    found = combine(matched(2), NONE, pair, 4.0)
    assert torch.allclose(found, unpack(expected, 6 * 8, 10 * 8, 8)[0, :, 0], atol=1e-5)
    assert not torch.allclose(found, combine(matched(1), NONE, pair, 4.0), atol=1e-2), "the patch matters"


def test_lines_get_their_norms_back_as_in_the_reference_pipeline_that_counts_them(pair: dict[str, Tensor]) -> None:
    pos, neg = pair["positive"], pair["negative"]
    mixed = neg + 4.0 * (pos - neg)  # as in diffusers' Lumina2Pipeline
    expected = mixed * (torch.norm(pos, dim=-1, keepdim=True) / torch.norm(mixed, dim=-1, keepdim=True))
    rule = Guidance(how=lambda extra: Combination(match_norm=True, per="line"))
    assert torch.equal(combine(rule, NONE, pair, 4.0), expected)


def test_a_cap_changes_only_what_is_too_long(pair: dict[str, Tensor]) -> None:
    pos = pair["positive"]
    assert torch.equal(cap_norm(pos, pos, 1.0), pos)
    assert torch.allclose(cap_norm(3 * pos, pos, 2.0), 2 * pos, rtol=1e-5)
    assert torch.equal(cap_norm(torch.zeros(3), torch.zeros(3), 1.0), torch.zeros(3))


@pytest.mark.parametrize("patch", [1, 2])
def test_every_token_gets_its_own_norm_back_in_pictures_and_in_frames(patch: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for shape in ((4, 6, 8), (4, 3, 6, 8)):
        pos, neg = (torch.randn(shape, generator=generator) for _ in range(2))
        matched = match_norm_per_token(neg * 7, pos, patch)
        assert matched.shape == shape
        tokens = [x[..., :patch, :patch].movedim(0, -1).flatten(-3).norm(dim=-1) for x in (matched, pos)]
        assert torch.allclose(*tokens, rtol=1e-5)


@pytest.mark.parametrize("rule", [None, Guidance(), matched(2), capped(1.0)])
def test_one_branch_alone_passes_through_in_float32(rule: Guidance | None) -> None:
    pos = torch.ones(2, 2, 2, dtype=torch.bfloat16)
    assert torch.equal(combine(rule, NONE, {"positive": pos}, 0.0), torch.ones(2, 2, 2))


def test_half_precision_branches_are_combined_in_float32(pair: dict[str, Tensor]) -> None:
    halves = {name: each.bfloat16() for name, each in pair.items()}
    expected = halves["negative"].float() + 4.0 * (halves["positive"].float() - halves["negative"].float())
    assert torch.equal(combine(Guidance(), NONE, halves, 4.0), expected)


def test_time_elapses_from_the_first_timestep_to_zero() -> None:
    assert [elapsed(timestep) for timestep in (1000.0, 750.0, 0.0)] == [0.0, 0.25, 1.0]
