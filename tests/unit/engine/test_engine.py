"""The engine over a fake family: events, isolation, cancelling, pausing, deadlines."""

from __future__ import annotations

import threading

import pytest
import torch

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import EngineClosedError, ModelError, RequestCancelled
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import Background
from tests.fakes import Adder, Clock, Coder, ask, engine


def finish(subject: Engine, ticks: int = 100) -> list[Event]:
    events: list[Event] = []
    for _ in range(ticks):
        if subject.idle:
            return events
        events += subject.tick()
    raise AssertionError("the engine did not finish")


def submit(subject: Engine, *asks: object) -> list[str]:
    return [subject.submit(subject.make_request(one)) for one in asks]  # type: ignore[arg-type]


def result(events: list[Event], request_id: str) -> Done:
    [done] = [e for e in events if isinstance(e, Done) and e.request_id == request_id]
    return done


def test_a_request_runs_to_its_result_with_one_event_per_step() -> None:
    subject = engine()
    [id_] = submit(subject, ask(seed=3, num_inference_steps=4))
    events = finish(subject)
    steps = [(e.step, e.steps) for e in events if isinstance(e, Progress) and e.stage == "add"]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    done = result(events, id_)
    assert done.result.output.shape == (1, 3, 2, 2)
    assert done.result.seeds == [3]
    assert set(done.result.timings) == {"queue", "encode", "add", "decode"}


def test_requests_in_company_give_what_they_give_alone() -> None:
    asks = [ask("one", seed=1, num_inference_steps=2), ask("three", seed=2, num_inference_steps=5, height=32)]
    alone = []
    for one in asks:
        subject = engine()
        [id_] = submit(subject, one)
        alone.append(result(finish(subject), id_).result.output)
    together = engine()
    ids = submit(together, *asks)
    events = finish(together)
    for id_, expected in zip(ids, alone, strict=True):
        assert torch.equal(result(events, id_).result.output, expected)


def test_rows_of_different_requests_share_a_forward_unless_the_engine_is_exact() -> None:
    for exact, most in ((False, 3), (True, 1)):
        subject = engine(config=ScheduleConfig(exact=exact))
        submit(subject, ask("a"), ask("b"), ask("c", height=32))
        finish(subject)
        adder = subject.runner.pipeline.ctx.components["adder"]
        assert isinstance(adder, Adder)
        assert max(adder.calls) == most


def test_a_repeated_prompt_and_n_outputs_are_encoded_once() -> None:
    subject = engine()
    submit(subject, ask("same", num_outputs_per_prompt=3), ask("same"), ask("other"))
    finish(subject)
    coder = subject.runner.pipeline.ctx.components["coder"]
    assert isinstance(coder, Coder)
    assert coder.calls == ["same", "other"]


def test_new_weights_make_remembered_outputs_stale() -> None:
    subject = engine()
    submit(subject, ask("same"))
    finish(subject)
    subject.runner.pipeline.ctx.version += 1
    submit(subject, ask("same"))
    finish(subject)
    assert subject.runner.pipeline.ctx.components["coder"].calls == ["same", "same"]


@pytest.mark.parametrize("trouble", ["broken", "poisoned"])
def test_a_failing_request_fails_alone(trouble: str) -> None:
    subject = engine()
    good, bad, other = submit(subject, ask("good", seed=1), ask(trouble, num_outputs_per_prompt=2), ask("x", seed=2))
    events = finish(subject)
    failures = [e for e in events if isinstance(e, Failed)]
    assert [e.request_id for e in failures] == [bad]
    assert "ValueError" in str(failures[0].error)
    assert result(events, good)
    assert result(events, other)
    assert not subject.runner.states
    assert not subject.runner.jobs


def test_cancelling_stops_at_the_next_step_and_frees_the_state() -> None:
    subject = engine()
    stopped, other = submit(subject, ask(num_inference_steps=50), ask(num_inference_steps=5))
    for _ in range(3):
        subject.tick()
    subject.cancel(stopped)
    events = subject.tick()
    assert any(isinstance(e, Failed) and e.request_id == stopped for e in events)
    assert all(not state_id.startswith(stopped) for state_id in subject.runner.states)
    assert result(finish(subject), other)


def test_a_request_is_dropped_when_its_deadline_passes() -> None:
    clock = Clock()
    subject = engine(clock)
    submit(subject, ask(num_inference_steps=50, timeout=5.0))
    subject.tick()
    clock.now += 6.0
    [failed] = [e for e in subject.tick() if isinstance(e, Failed)]
    assert isinstance(failed.error, RequestCancelled)
    assert "deadline" in str(failed.error)
    assert subject.idle


def test_a_paused_request_waits_and_then_gives_the_same_result() -> None:
    expected_engine = engine()
    [id_] = submit(expected_engine, ask(seed=9, num_inference_steps=6))
    expected = result(finish(expected_engine), id_).result.output
    subject = engine()
    [id_] = submit(subject, ask(seed=9, num_inference_steps=6))
    for _ in range(3):
        subject.tick()
    subject.pause(id_)
    assert subject.idle
    subject.tick()
    subject.resume(id_)
    assert torch.equal(result(finish(subject), id_).result.output, expected)


def test_previews_come_every_so_many_steps_as_pictures() -> None:
    subject = engine()
    submit(subject, ask(num_inference_steps=5, previews=2))
    previews = [e for e in finish(subject) if isinstance(e, Preview)]
    assert [p.step for p in previews] == [2, 4]
    assert previews[0].image.shape == (2, 2, 3)
    assert previews[0].image.dtype == "uint8"


def test_n_outputs_are_n_requests_with_seeds_in_a_row() -> None:
    subject = engine()
    many, *single = submit(subject, ask(seed=5, num_outputs_per_prompt=2), ask(seed=5), ask(seed=6))
    events = finish(subject)
    outputs = result(events, many).result
    assert outputs.seeds == [5, 6]
    for index, id_ in enumerate(single):
        assert torch.equal(outputs.output[index], result(events, id_).result.output[0])


def test_a_closed_engine_says_so() -> None:
    subject = engine()
    subject.close()
    subject.close()
    with pytest.raises(EngineClosedError, match="closed"):
        submit(subject, ask())


def test_a_background_engine_delivers_every_event_to_its_listener() -> None:
    background = Background(engine)
    ended = threading.Event()
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Done | Failed):
            ended.set()

    background.submit(background.engine.make_request(ask()), listen)
    assert ended.wait(10)
    background.close()
    assert isinstance(seen[-1], Done)


def test_a_background_engine_is_made_on_the_thread_that_drives_it() -> None:
    makers: list[str] = []

    def make() -> Engine:
        makers.append(threading.current_thread().name)
        return engine()

    Background(make).close()
    assert makers == ["omnimuse-engine"]


def test_what_keeps_a_background_engine_from_being_made_is_raised_where_it_was_asked_for() -> None:
    def make() -> Engine:
        raise ModelError("no weights")

    with pytest.raises(ModelError, match="no weights"):
        Background(make)
