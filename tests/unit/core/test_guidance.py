"""One declaration of guidance says which branches there are, at which scale, and what is refused."""

from __future__ import annotations

import pytest

from omnimuse.core.guidance import BOTH, ONLY_POSITIVE, Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams

P = DiffusionParams
ORDINARY, FROM_POSITIVE = Guidance(), Guidance(neutral=0)
GIVEN_ONLY = Guidance(("true_cfg_scale",), negative=None)
TWO = Guidance(("guidance_scale", "guidance_scale_2"))
NONE = FamilyParams()


@pytest.mark.parametrize(
    ("rule", "negative", "params", "branches"),
    [
        (ORDINARY, None, P(), ONLY_POSITIVE),
        (ORDINARY, None, P(guidance_scale=1.0), ONLY_POSITIVE),
        (ORDINARY, None, P(guidance_scale=1.5), BOTH),
        (FROM_POSITIVE, None, P(guidance_scale=0.0), ONLY_POSITIVE),
        (FROM_POSITIVE, "grey", P(guidance_scale=0.5), BOTH),
        (GIVEN_ONLY, None, P(true_cfg_scale=4.0), ONLY_POSITIVE),
        (GIVEN_ONLY, "", P(true_cfg_scale=4.0, guidance_scale=0.0), BOTH),
        (GIVEN_ONLY, "", P(true_cfg_scale=1.0, guidance_scale=3.5), ONLY_POSITIVE),
        (TWO, None, P(guidance_scale=1.0, guidance_scale_2=2.0), BOTH),
        (TWO, None, P(guidance_scale=2.0, guidance_scale_2=1.0), BOTH),
        (TWO, None, P(guidance_scale=1.0, guidance_scale_2=1.0), ONLY_POSITIVE),
    ],
)
def test_the_negative_branch_is_needed_where_some_step_evaluates_it(
    rule: Guidance, negative: str | None, params: P, branches: tuple[str, ...]
) -> None:
    assert rule.needed(negative, params) == branches
    scales = [rule.scale(params, network) for network in range(len(rule.scales))]
    evaluated = [rule.branches(branches, NONE, scale, 0.5) for scale in scales]
    assert (BOTH in evaluated) == (branches == BOTH), "what is encoded is what is evaluated"


def test_networks_that_take_turns_have_a_scale_each_and_the_first_stands_for_one_that_was_left_open() -> None:
    assert [TWO.scale(P(guidance_scale=4.0), network) for network in (0, 1)] == [4.0, 4.0]
    assert [TWO.scale(P(guidance_scale=4.0, guidance_scale_2=3.0), network) for network in (0, 1)] == [4.0, 3.0]
    assert (ORDINARY.scale(P()), FROM_POSITIVE.scale(P())) == (1.0, 0.0)
    assert TWO.branches(BOTH, NONE, 1.0, 0.0) == ONLY_POSITIVE
    assert TWO.branches(BOTH, NONE, 1.5, 0.0) == BOTH


def test_guidance_stops_once_the_truncation_has_passed() -> None:
    rule = Guidance(how=lambda extra: Combination(truncation=0.5))
    assert rule.branches(BOTH, NONE, 5.0, 0.5) == BOTH
    assert rule.branches(BOTH, NONE, 5.0, 0.501) == ONLY_POSITIVE


def test_guidance_stops_after_a_share_of_the_steps() -> None:
    rule = Guidance(how=lambda extra: Combination(until=0.5))
    assert rule.branches(BOTH, NONE, 5.0, 0.0, (0, 2)) == BOTH
    assert rule.branches(BOTH, NONE, 5.0, 0.0, (1, 2)) == ONLY_POSITIVE


def test_further_branches_are_evaluated_guided_or_not_and_nothing_is_encoded_for_them() -> None:
    rule = Guidance(besides=lambda extra: ("isolated",))
    assert rule.branches(BOTH, NONE, 5.0, 0.5) == (*BOTH, "isolated")
    assert rule.branches(BOTH, NONE, 1.0, 0.5) == (*ONLY_POSITIVE, "isolated")
    assert rule.needed(None, P(guidance_scale=5.0)) == BOTH


def test_a_default_stands_for_a_negative_prompt_that_nobody_gave_and_for_no_other() -> None:
    rule = Guidance(negative=" ")
    assert [rule.text(given) for given in (None, "", "grey")] == [" ", "", "grey"]
    assert rule.objection(None, P(guidance_scale=4.0)) is None


@pytest.mark.parametrize(
    ("rule", "negative", "params", "words"),
    [
        (ORDINARY, "grey", P(guidance_scale=1.0), "negative_prompt does nothing while guidance_scale is 1; choose a"),
        (FROM_POSITIVE, "grey", P(guidance_scale=0.0), "scale above 0, such as 4, or leave the prompt out"),
        (TWO, "grey", P(guidance_scale=1.0, guidance_scale_2=0.5), "guidance_scale is 1"),
        (GIVEN_ONLY, "grey", P(guidance_scale=3.5), "true_cfg_scale is 1"),
        (GIVEN_ONLY, None, P(true_cfg_scale=4.0), "true_cfg_scale=4 needs a negative_prompt, which may be empty"),
    ],
)
def test_one_half_of_guidance_without_the_other_is_refused(
    rule: Guidance, negative: str | None, params: P, words: str
) -> None:
    assert words in str(rule.objection(negative, params))


@pytest.mark.parametrize(
    ("rule", "negative", "params"),
    [
        (ORDINARY, None, P()),
        (ORDINARY, "", P(guidance_scale=1.0)),
        (TWO, "grey", P(guidance_scale=1.0, guidance_scale_2=3.0)),
        (GIVEN_ONLY, "", P()),
        (GIVEN_ONLY, None, P(true_cfg_scale=1.0)),
    ],
)
def test_what_makes_sense_is_let_in(rule: Guidance, negative: str | None, params: P) -> None:
    assert rule.objection(negative, params) is None
