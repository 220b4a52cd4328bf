"""Every pipeline in three pools: what its parts make of a request, one after the other, is what the whole makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

from omnimuse.core.output import Done, Event, Failed, Handed
from omnimuse.core.request import Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.state import State, changed
from omnimuse.worker.explain import explain
from omnimuse.worker.part import ELSEWHERE
from tests.carrying import carried, three
from tests.checkpoints.adapters import layers_of, write
from tests.invariants.conftest import Subject, counts, drain, outputs


def through(engines: Sequence[Engine], requests: Sequence[Request]) -> list[Event]:
    """The events of all pools, one after the other."""
    by_id = {request.id: request for request in requests}
    for request in requests:
        engines[0].submit(request)
    events = drain(engines[0])
    told = list(events)
    for engine in engines[1:]:
        refused = [event.error for event in events if isinstance(event, Failed)]
        assert not refused, refused
        for event in (event for event in events if isinstance(event, Handed)):
            engine.hear(carried(event, engine.runner.pipeline.records))
            if event.number == 0:
                engine.submit(by_id[event.request_id])
        events = drain(engine)
        told += events
    return told


@pytest.mark.crossed
@pytest.mark.shows("pools")
def test_a_request_that_goes_through_three_pools_is_the_same_to_the_byte(subject: Subject, shared: Engine) -> None:
    asks = [subject.ask(0), subject.ask(0, num_outputs_per_prompt=2), subject.ask(len(subject.family.wishes) - 1)]
    deploy = three(shared.runner.pipeline.stages)
    engines = [start(subject.config(deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]
    requests = [shared.make_request(replace(ask, blocks=True)) for ask in asks]
    try:
        for request in requests:
            for engine in (shared, *engines):
                engine.runner.memo.clear()
            shared.submit(replace(request, id=f"whole-{request.id}"))
            events, told = drain(shared), through(engines, [request])
            assert torch.equal(outputs(told, request.id), outputs(events, f"whole-{request.id}"))
            [whole], [found] = ([e.result for e in each if isinstance(e, Done)] for each in (events, told))
            assert counts(found) == counts(whole), "what it took in every pool"
        for engine in engines:
            ctx = engine.runner.pipeline.ctx
            used = {name for stage in engine.runner.pipeline.own for name in (*stage.uses, *stage.looks)}
            assert used.isdisjoint(ctx.lent) and set(ctx.lent.values()) <= {ELSEWHERE}
            assert not engine.runner.states and not engine.runner.jobs
    finally:
        for engine in engines:
            engine.close()


@pytest.mark.crossed
def test_an_adapter_takes_room_in_the_pools_that_have_its_layers_and_nowhere_else(
    subject: Subject, shared: Engine, tmp_path: Path
) -> None:
    write(tmp_path / "style.safetensors", layers_of(subject.folder))
    ask = subject.ask(0, loras=[f"{tmp_path / 'style.safetensors'}:0.7"])
    deploy = three(shared.runner.pipeline.stages)
    engines = [start(subject.config(deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]
    try:
        request = shared.make_request(ask)
        shared.submit(replace(request, id="whole"))
        events, told = drain(shared), through(engines, [request])
        assert torch.equal(outputs(told, request.id), outputs(events, "whole"))
        whole, *parts = (engine.runner.pipeline.ctx.adapters for engine in (shared, *engines))
        for adapters, engine in zip(parts, engines, strict=True):
            own = engine.runner.pipeline.ctx
            [found] = adapters.living
            [mine] = [each for each in whole.living if each.id == found.id]
            assert {*found.products} == {site for site in mine.products if site[0] not in own.lent}
            assert found.components == mine.components, "it changes as much everywhere"
        assert {each.nbytes for each in parts} == {0, mine.nbytes}
    finally:
        for engine in engines:
            engine.close()


@pytest.mark.crossed
def test_what_each_pool_has_of_a_model_is_told_before_anything_is_loaded(subject: Subject, shared: Engine) -> None:
    deploy = three(shared.runner.pipeline.stages)
    rows = explain(subject.config(deploy=deploy))
    assert all(row.value and row.reason for row in rows) and len(rows) == len({*rows})
    networks = {name for name, (size, _) in shared.space.weights.items() if size}
    for pool in deploy.pools:
        [here] = [row for row in rows if (row.topic, row.name) == ("pools", pool.name)]
        own = [stage for stage in shared.runner.pipeline.stages if stage.name in pool.stages]
        used = networks & {name for stage in own for name in (*stage.uses, *stage.looks)}
        told = {row.name: row.value for row in rows if row.topic in ("memory", f"{pool.name}: memory")}
        assert used <= {*here.value.split(", ")}
        assert {name for name in networks if told[name] != "none"} == used


FORMATS = (("float32", "bfloat16", "float32"), ("bfloat16", "float32", "bfloat16"))


@pytest.mark.crossed
def test_pools_of_other_number_formats_take_over_what_they_would_have_made_themselves(
    subject: Subject, shared: Engine
) -> None:
    requests = [shared.make_request(subject.ask(index)) for index in {0, len(subject.family.wishes) - 1}]
    deploy, made = three(shared.runner.pipeline.stages), dict[str, list[Engine]]()
    for name in ("float32", "bfloat16"):
        plain = subject.config()
        config = replace(plain, model=replace(plain.model, dtype=name))
        made[name] = [start(replace(config, deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]
    try:
        own = {name: formats_heard(engines, requests) for name, engines in made.items()}
        for formats in FORMATS:
            engines = [made[name][number] for number, name in zip(range(len(deploy.pools)), formats, strict=False)]
            for number, found in enumerate(formats_heard(engines, requests)):
                assert found == own[formats[number + 1]][number], "of every slot"
    finally:
        for engine in (each for engines in made.values() for each in engines):
            engine.close()


def formats_heard(engines: Sequence[Engine], requests: Sequence[Request]) -> list[dict[str, set[torch.dtype]]]:
    """For every pool but the first, in which formats the slots of all requests are that it has taken over.

    What they make at last is there and is numbers.
    """
    heard: list[dict[str, set[torch.dtype]]] = [{} for _ in engines[1:]]
    with ExitStack() as stack:
        for engine, kinds in zip(engines[1:], heard, strict=True):
            begin = partial(noted, engine.runner.hand.begin, kinds)
            stack.enter_context(mock.patch.object(engine.runner.hand, "begin", begin))
        for request in requests:
            made = outputs(through(engines, [request]), request.id)
            assert made.isfinite().all() and made.numel()
    return heard


def noted(
    begin: Callable[[Iterable[State]], None], kinds: dict[str, set[torch.dtype]], states: Iterable[State]
) -> None:
    """Begins `states`, and adds to `kinds` in which formats their slots are."""
    begun = list(states)
    begin(begun)
    for state in begun:
        for name in state.names:
            parts = list[torch.Tensor]()
            changed(state[name], parts.append)
            kinds.setdefault(name, set()).update(part.data.dtype for part in parts)
