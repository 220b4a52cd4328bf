"""Every pipeline in three pools: what its parts make of a request, one after the other, is what the whole makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from omnimuse.core.output import Event, Failed, Handed
from omnimuse.core.request import Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.worker.part import ELSEWHERE
from tests.carrying import carried, three
from tests.invariants.conftest import Subject, drain, outputs


def through(engines: Sequence[Engine], requests: Sequence[Request]) -> list[Event]:
    """The events of the last pool, after all have gone through the others."""
    by_id = {request.id: request for request in requests}
    for request in requests:
        engines[0].submit(request)
    events = drain(engines[0])
    for engine in engines[1:]:
        refused = [event.error for event in events if isinstance(event, Failed)]
        assert not refused, refused
        for event in (event for event in events if isinstance(event, Handed)):
            engine.hear(carried(event, engine.runner.pipeline.records))
            if event.number == 0:
                engine.submit(by_id[event.request_id])
        events = drain(engine)
    return events


@pytest.mark.crossed
def test_a_request_that_goes_through_three_pools_is_the_same_to_the_byte(subject: Subject, shared: Engine) -> None:
    asks = [subject.ask(0), subject.ask(0, num_outputs_per_prompt=2), subject.ask(len(subject.family.wishes) - 1)]
    deploy = three(shared.runner.pipeline.stages)
    engines = [start(subject.config(deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]
    requests = [shared.make_request(ask) for ask in asks]
    try:
        for request in requests:
            shared.submit(replace(request, id=f"whole-{request.id}"))
            whole = outputs(drain(shared), f"whole-{request.id}")
            found = outputs(through(engines, [request]), request.id)
            assert torch.equal(found, whole)
        for engine in engines:
            ctx = engine.runner.pipeline.ctx
            used = {name for stage in engine.runner.pipeline.own for name in (*stage.uses, *stage.looks)}
            assert used.isdisjoint(ctx.lent) and set(ctx.lent.values()) <= {ELSEWHERE}
            assert not engine.runner.states and not engine.runner.jobs
    finally:
        for engine in engines:
            engine.close()
