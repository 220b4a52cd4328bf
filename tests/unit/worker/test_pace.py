"""What forwards cost, and whether company pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from omnimuse.worker.pace import ENOUGH, KEPT, STALE, Pace


def filled(cost: Callable[[Sequence[int]], float], forwards: Sequence[Sequence[int]]) -> Pace:
    pace = Pace()
    for tokens in forwards:
        for _ in range(ENOUGH):
            pace.record("net", tokens, cost(tokens))
    return pace


def overhead(tokens: Sequence[int]) -> float:
    """Each forward takes as long as a thousand tokens do, whatever is in it."""
    return 1000 + sum(tokens)


def test_what_was_never_measured_runs_alone_first_and_then_in_company() -> None:
    pace = Pace()
    assert not pace.pays("net", [64, 64])
    for _ in range(ENOUGH):
        assert not pace.pays("net", [64, 64])
        pace.record("net", [64], 1.0)
    assert pace.pays("net", [64, 64])
    assert not pace.pays("net", [64, 4096]), "the other size is not known"
    assert not pace.pays("other", [64, 64])


@pytest.mark.parametrize(("tokens", "pays"), [(64, True), (1024, True), (32768, False)])
def test_company_pays_where_it_saves_enough(tokens: int, pays: bool) -> None:
    pace = filled(overhead, [[tokens], [tokens, tokens]])
    assert pace.pays("net", [tokens, tokens]) is pays


def test_a_first_forward_in_company_that_was_slow_decides_nothing() -> None:
    pace = filled(overhead, [[64]])
    pace.record("net", [64, 64], 1e9)
    for _ in range(ENOUGH - 1):
        assert pace.pays("net", [64, 64]), "it was measured once, and a first run is slow"
        pace.record("net", [64, 64], overhead([64, 64]))
    assert pace.pays("net", [64, 64])


def test_what_is_stale_does_not_outvote_what_is_measured_anew() -> None:
    pace = filled(overhead, [[32768], *[[32768, 32768]] * KEPT])
    for _ in range(STALE + 1):
        pace.record("net", [32768], overhead([32768]))
    for _ in range(ENOUGH):
        pace.record("net", [32768, 32768], overhead([32768]))
    assert pace.pays("net", [32768, 32768]), "a row costs nothing beside another by now"


def test_one_slow_measurement_decides_nothing() -> None:
    pace = filled(overhead, [[32768], [32768, 32768]])
    pace.record("net", [32768], 1e9)
    pace.record("net", [32768, 32768], 1.0)
    assert not pace.pays("net", [32768, 32768])


def test_what_did_not_pay_is_tried_again_after_a_while_and_so_is_what_did() -> None:
    pace = filled(overhead, [[32768], [32768, 32768]])
    for _ in range(STALE + 1):
        pace.record("net", [32768], overhead([32768]))
    assert pace.pays("net", [32768, 32768])
    paying = filled(overhead, [[64], [64, 64]])
    for _ in range(STALE + 1):
        paying.record("net", [64, 64], overhead([64, 64]))
    assert not paying.pays("net", [64, 64]), "alone is to be measured again"


def test_what_was_measured_can_be_read() -> None:
    [(network, tokens, ratio)] = filled(overhead, [[1024], [1024, 1024]]).table()
    assert (network, tokens) == ("net", 1024)
    assert ratio == pytest.approx((1000 + 2048) / (2 * 2024))
