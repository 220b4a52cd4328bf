"""Plans survive the way to another rank."""

from __future__ import annotations

from omnimuse.core.request import Door
from omnimuse.worker.plan import TickPlan, decode, encode
from tests.fakes import SPEC, ask

DOOR = Door.of(SPEC, {}, "fake")


def test_a_plan_comes_back_as_it_was_sent() -> None:
    request = DOOR.make_request(ask("é ☃", guidance_scale=2, timeout=3.0, tenant="t", previews=2), 1.0, 5)
    plan = TickPlan(("gone",), (request,), ("held",), ("back",), ("a/0", "b/1"), memo=5)
    assert decode(encode(plan), SPEC) == plan
    assert decode(encode(TickPlan(stop=True)), SPEC).stop
    assert decode(encode(TickPlan(record=True)), SPEC) == TickPlan(record=True)
    assert decode(encode(TickPlan(write="a/b")), SPEC) == TickPlan(write="a/b")


def test_a_plan_of_names_is_small() -> None:
    running = tuple(f"{'0' * 32}/{i}" for i in range(64))
    assert len(encode(TickPlan(run=running))) < 4096
