"""What an engine is started with or wears, for those that draw and write with one network: the same tests as others."""

from __future__ import annotations

import pytest

from tests.checkpoints.families import ALLROUNDERS
from tests.invariants import test_caches, test_invariants, test_lora, test_offload, test_quantized, test_tiers
from tests.invariants.conftest import of

pytestmark = [of(ALLROUNDERS), pytest.mark.crossed]

adapters = test_lora.adapters

test_a_step_cache_at_threshold_zero_is_off_bit_for_bit_in_company = (
    test_caches.test_a_step_cache_at_threshold_zero_is_off_bit_for_bit_in_company
)
test_requests_with_all_kinds_of_step_caches_share_ticks_and_get_what_they_get_alone = (
    test_caches.test_requests_with_all_kinds_of_step_caches_share_ticks_and_get_what_they_get_alone
)
test_every_mode_of_offload_is_resident_bit_for_bit = test_offload.test_every_mode_of_offload_is_resident_bit_for_bit
test_attention_backends_agree_and_are_chosen_per_role = (
    test_invariants.test_attention_backends_agree_and_are_chosen_per_role
)
test_packed_weights_draw_nearly_what_float32_draws = test_quantized.test_packed_weights_draw_nearly_what_float32_draws
test_in_company_is_alone_bit_for_bit_while_forwards_are_shared = (
    test_tiers.test_in_company_is_alone_bit_for_bit_while_forwards_are_shared
)
test_requests_with_different_adapters_in_one_tick_are_each_alone_bit_for_bit = (
    test_lora.test_requests_with_different_adapters_in_one_tick_are_each_alone_bit_for_bit
)
test_after_adapters_were_worn_a_request_without_is_as_if_there_had_been_none = (
    test_lora.test_after_adapters_were_worn_a_request_without_is_as_if_there_had_been_none
)
test_adapters_are_worn_by_weights_that_wait_elsewhere = test_lora.test_adapters_are_worn_by_weights_that_wait_elsewhere
