"""What forwards cost, and whether company pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from omnimuse.worker.pace import ENOUGH, KEPT, STALE, Offer, Pace, Party


def filled(cost: Callable[[Sequence[int]], float], forwards: Sequence[Sequence[int]]) -> Pace:
    pace = Pace()
    for tokens in forwards:
        for _ in range(ENOUGH):
            pace.record("net", tokens, cost(tokens))
    return pace


def pays(pace: Pace, *tokens: int, network: str = "net", steps: Sequence[float] = ()) -> bool:
    """Whether the last should join the others; all have as many steps to come, unless `steps` says how many."""
    each = steps or [10] * len(tokens)
    *others, last = (Offer(str(at), *known) for at, known in enumerate(zip(tokens, each, strict=True)))
    return pace.pays(network, Party(others), last)


def overhead(tokens: Sequence[int]) -> float:
    """Each forward takes as long as a thousand tokens do, whatever is in it."""
    return 1000 + sum(tokens)


def test_who_writes_a_token_is_company_for_who_does_and_who_reads_for_who_reads() -> None:
    writes, reads = Offer("writes", 1, 9, "net"), Offer("reads", 64, 9, "net")
    both, elsewhere = Party([writes, reads]), Party([writes, Offer("other", 1, 9, "other")])
    assert [both.alike("net", tokens).offers for tokens in (1, 128)] == [[writes], [reads]]
    assert elsewhere.alike("net", 1).offers == [writes]
    for one in (writes, reads):
        assert (all_alike := Party([one])).alike("net", one.tokens) is all_alike


def test_what_was_never_measured_runs_alone_first_and_then_in_company() -> None:
    pace = Pace()
    assert not pays(pace, 64, 64)
    for _ in range(ENOUGH):
        assert not pays(pace, 64, 64)
        pace.record("net", [64], 1.0)
    assert pays(pace, 64, 64)
    assert not pays(pace, 64, 4096), "the other size is not known"
    assert not pays(pace, 64, 64, network="other")


@pytest.mark.parametrize(("tokens", "shared"), [(64, True), (1024, True), (32768, False)])
def test_company_pays_where_it_saves_enough(tokens: int, shared: bool) -> None:
    pace = filled(overhead, [[tokens], [tokens, tokens]])
    assert pays(pace, tokens, tokens) is shared


def test_a_first_forward_in_company_that_was_slow_decides_nothing() -> None:
    pace = filled(overhead, [[64]])
    pace.record("net", [64, 64], 1e9)
    for _ in range(ENOUGH - 1):
        assert pays(pace, 64, 64), "it was measured once, and a first run is slow"
        pace.record("net", [64, 64], overhead([64, 64]))
    assert pays(pace, 64, 64)


def test_what_is_stale_does_not_outvote_what_is_measured_anew() -> None:
    pace = filled(overhead, [[32768], *[[32768, 32768]] * KEPT])
    for _ in range(STALE + 1):
        pace.record("net", [32768], overhead([32768]))
    for _ in range(ENOUGH):
        pace.record("net", [32768, 32768], overhead([32768]))
    assert pays(pace, 32768, 32768), "a row costs nothing beside another by now"


def test_one_slow_measurement_decides_nothing() -> None:
    pace = filled(overhead, [[32768], [32768, 32768]])
    pace.record("net", [32768], 1e9)
    pace.record("net", [32768, 32768], 1.0)
    assert not pays(pace, 32768, 32768)


def test_what_did_not_pay_is_tried_again_after_a_while_and_so_is_what_did() -> None:
    pace = filled(overhead, [[32768], [32768, 32768]])
    for _ in range(STALE + 1):
        pace.record("net", [32768], overhead([32768]))
    assert pays(pace, 32768, 32768)
    paying = filled(overhead, [[64], [64, 64]])
    for _ in range(STALE + 1):
        paying.record("net", [64, 64], overhead([64, 64]))
    assert not pays(paying, 64, 64), "alone is to be measured again"


def test_what_was_measured_can_be_read() -> None:
    [shared] = filled(overhead, [[1024], [1024, 1024]]).table()
    assert (shared.network, shared.tokens, shared.states) == ("net", 1024, 2)
    assert shared.share == pytest.approx((1000 + 2048) / (2 * 2024))


def test_sizes_that_are_alike_are_measured_by_the_token() -> None:
    pace = Pace()
    for _ in range(ENOUGH):
        pace.record("net", [100], 1.0)
        pace.record("net", [120], 1.2)
    assert pace.alone("net", 100) == pytest.approx(1.0)
    assert pace.alone("net", 120) == pytest.approx(1.2)


def test_who_has_little_left_is_not_delayed_by_who_has_much_for_a_small_gain() -> None:
    pace = filled(lambda tokens: sum(tokens) * (0.85 if len(tokens) > 1 else 1.0), [[64], [64, 64]])
    assert pays(pace, 64, 64, steps=[10, 10]), "both end sooner than one after the other would on average"
    assert not pays(pace, 64, 64, steps=[2, 50])
    assert pays(pace, 64, 64, steps=[50, 2])


def test_what_costs_little_beside_others_joins_whoever_has_little_left() -> None:
    pace = filled(overhead, [[64], [64, 64]])
    assert pays(pace, 64, 64, steps=[1, 1000])


def test_two_and_many_are_measured_apart() -> None:
    def costs(tokens: Sequence[int]) -> float:
        return sum(tokens) * {1: 1.0, 2: 1.0}.get(len(tokens), 0.5)

    pace = filled(costs, [[64], [64, 64], [64] * 8])
    assert not pays(pace, 64, 64)
    assert pays(pace, *[64] * 8)
