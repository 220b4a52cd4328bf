"""What holds for every pipeline, for those that draw and write with one network: the same tests, with other subjects.

What an engine over them is started with is in `test_allround_started.py`. What is asked of blocks is asked of theirs,
too (`BLOCKS`).
"""

from __future__ import annotations

import pytest
import torch

from omnimuse.core.output import Failed
from omnimuse.engine.engine import Engine
from omnimuse.pipeline.denoise import Denoise
from tests.checkpoints.families import ALLROUNDERS
from tests.invariants import test_invariants as every
from tests.invariants import test_pools
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit, tick

exact, crowded = every.exact, every.crowded


pytestmark = of(ALLROUNDERS)


test_a_request_that_goes_through_three_pools_is_the_same_to_the_byte = (
    test_pools.test_a_request_that_goes_through_three_pools_is_the_same_to_the_byte
)
test_a_small_tick_budget_changes_nothing_but_the_grouping = (
    every.test_a_small_tick_budget_changes_nothing_but_the_grouping
)
test_a_step_costs_the_tokens_of_its_rows_and_decoding_is_not_charged_as_denoising = (
    every.test_a_step_costs_the_tokens_of_its_rows_and_decoding_is_not_charged_as_denoising
)
test_as_many_steps_are_told_of_as_a_request_counts_evaluations = (
    every.test_as_many_steps_are_told_of_as_a_request_counts_evaluations
)
test_cancelling_frees_the_state_and_leaves_the_others_as_they_were = (
    every.test_cancelling_frees_the_state_and_leaves_the_others_as_they_were
)
test_how_threads_wait_changes_no_bit_and_their_number_the_last_ones_only = (
    every.test_how_threads_wait_changes_no_bit_and_their_number_the_last_ones_only
)
test_in_company_is_alone_bit_for_bit_in_the_exact_tier = every.test_in_company_is_alone_bit_for_bit_in_the_exact_tier
test_in_company_is_close_to_alone_in_the_fast_tier = every.test_in_company_is_close_to_alone_in_the_fast_tier
test_n_outputs_are_n_requests_with_seeds_in_a_row = every.test_n_outputs_are_n_requests_with_seeds_in_a_row
test_pausing_on_the_cpu_and_resuming_changes_nothing = every.test_pausing_on_the_cpu_and_resuming_changes_nothing
test_pausing_resuming_and_cancelling_in_any_order_harms_nobody = (
    every.test_pausing_resuming_and_cancelling_in_any_order_harms_nobody
)
test_neither_previews_nor_who_times_blocks_changes_the_result = (
    every.test_neither_previews_nor_who_times_blocks_changes_the_result
)
test_a_recording_changes_nothing_and_names_all_steps_and_blocks = (
    every.test_a_recording_changes_nothing_and_names_all_steps_and_blocks
)
test_progress_is_monotone_with_one_event_per_step_and_previews_are_pictures = (
    every.test_progress_is_monotone_with_one_event_per_step_and_previews_are_pictures
)
test_step_by_step_is_run_to_completion = every.test_step_by_step_is_run_to_completion
test_the_smallest_legal_request_is_drawn_so_that_a_worker_can_warm_up = (
    every.test_the_smallest_legal_request_is_drawn_so_that_a_worker_can_warm_up
)
test_undeclared_slots_are_refused_in_every_stage = every.test_undeclared_slots_are_refused_in_every_stage
test_what_is_made_is_in_range_and_seeds_make_it_differ = every.test_what_is_made_is_in_range_and_seeds_make_it_differ


@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpm++"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, of a scheduler
@pytest.mark.shows("scheduler", "company")
def test_every_scheduler_draws_in_any_number_of_steps_and_goes_where_the_others_go(
    subject: Subject, shared: Engine, name: str
) -> None:
    few, many = (subject.ask(0, num_inference_steps=steps, scheduler=name) for steps in (3, 24))
    found = run(shared, few, many, subject.ask(0, num_inference_steps=60))
    rough, fine, usual = (tensor.flatten() for tensor in found)
    [alone] = run(shared, few)
    assert every.close(found[0], alone)
    assert torch.isfinite(fine).all()
    assert (fine - usual).norm() < 0.6 * (rough - usual).norm()


def test_a_row_that_fails_while_others_are_drawn_fails_only_its_request(subject: Subject, shared: Engine) -> None:
    """Others may still read when it begins to be drawn, so the forward that fails is waited for."""
    [expected] = run(shared, subject.ask(1))
    bad, good = submit(shared, subject.ask(0, num_inference_steps=9), subject.ask(1))
    states, stage_of = shared.runner.states, shared.runner.pipeline.stage_of
    while len(states) < 2 or not all(isinstance(stage_of(each), Denoise) and each.plan for each in states.values()):
        tick(shared)
    [broken] = [state for state in states.values() if state.id.startswith(bad)]
    broken["latents"] = broken["latents"][:1]  # too few channels: its next forward fails
    events = drain(shared)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert every.close(outputs(events, good), expected)
    assert not states
    assert shared.runner.forwards.retries.total() == 1, "the forward that the bad row was in"
    shared.runner.forwards.retries.clear()
