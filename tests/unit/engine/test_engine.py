"""The engine over a fake family: events, isolation, cancelling, pausing, deadlines."""

from __future__ import annotations

import _thread
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import (
    CapacityError,
    DeadlineError,
    EngineClosedError,
    EngineDeadError,
    MemoryShortageError,
    ModelError,
    RequestCancelled,
)
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.core.request import Door, Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import Background
from omnimuse.worker.plan import TickPlan
from omnimuse.worker.runner import Runner
from tests.fakes import SPEC, Adder, Clock, Coder, FakePipeline, ask, context, engine


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
    assert set(done.result.timings) == {"queue", "encode prompt", "add", "decode"}
    assert list(done.result.steps) == ["add"]
    assert {stage: len(held) for stage, held in done.result.held.items()} == {"encode prompt": 1, "add": 4, "decode": 1}
    assert min(min(held) for held in done.result.held.values()) > 2**20, "bytes of this process"
    assert sum(done.result.steps["add"]) == pytest.approx(done.result.timings["add"])


def test_a_request_goes_by_a_loop_that_has_nothing_to_do_for_it() -> None:
    subject = engine()
    ids = submit(subject, ask("nothing"), ask(num_inference_steps=2))
    events = finish(subject)
    stages = [(e.request_id, e.stage) for e in events if isinstance(e, Progress)]
    assert [stage for id_, stage in stages if id_ == ids[0]] == ["encode prompt", "decode"]
    assert torch.equal(result(events, ids[0]).result.output, torch.full((1, 3, 2, 2), 0.5))
    adder = subject.runner.pipeline.ctx.components.wherever("adder")
    assert isinstance(adder, Adder) and adder.calls == [1, 1]


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
    for tier, most in (("fast", 3), ("exact", 1)):
        subject = engine(config=ScheduleConfig(tier=tier, company="always"))
        submit(subject, ask("a"), ask("b"), ask("c", height=32))
        finish(subject)
        adder = subject.runner.pipeline.ctx.components["adder"]
        assert isinstance(adder, Adder)
        assert max(adder.calls) == most


def test_without_a_gain_from_company_requests_are_drawn_one_after_the_other() -> None:
    subject = engine(config=ScheduleConfig(tier="exact"))
    ids = submit(subject, ask(num_inference_steps=9), ask(num_inference_steps=3), ask(num_inference_steps=6))
    events = finish(subject)
    assert [e.request_id for e in events if isinstance(e, Done)] == [ids[1], ids[2], ids[0]]


def test_a_repeated_prompt_and_n_outputs_are_encoded_once() -> None:
    subject = engine()
    submit(subject, ask("same", num_outputs_per_prompt=3), ask("same"), ask("other"))
    finish(subject)
    coder = subject.runner.pipeline.ctx.components["coder"]
    assert isinstance(coder, Coder)
    assert coder.calls == ["same", "other"]


@pytest.mark.parametrize("trouble", ["broken", "undecided", "poisoned"])
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


def test_what_wakes_with_the_next_tick_is_not_asked_before_what_its_step_takes() -> None:
    subject = engine()
    [id_] = submit(subject, ask(num_inference_steps=4))
    subject.tick()
    [state] = subject.runner.states
    assert subject.runner.cost(state) is not None
    subject.pause(id_)
    subject.tick()
    subject.resume(id_)
    assert subject.runner.cost(state) is None, "its tensors, of which a loop may reckon it, are not where they belong"
    subject.tick()
    assert subject.runner.cost(state) is not None


def test_a_paused_request_waits_and_then_gives_the_same_result() -> None:
    expected_engine = engine()
    [id_] = submit(expected_engine, ask(seed=9, num_inference_steps=6))
    expected = result(finish(expected_engine), id_).result.output
    subject = engine()
    [id_] = submit(subject, ask(seed=9, num_inference_steps=6))
    for _ in range(3):
        subject.tick()
    subject.pause(id_)
    assert not subject.idle, "its states must be moved"
    subject.tick()
    assert subject.idle
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


def retries(subject: Engine) -> dict[str, int]:
    return dict(subject.runner.forwards.retries)


def test_a_forward_that_fails_in_company_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    subject = engine()
    ids = submit(subject, ask("lonely", seed=1), ask("other", seed=2))
    events = finish(subject)
    assert all(result(events, id_) for id_ in ids)
    assert retries(subject) == {"adder": 1}
    submit(subject, ask("lonely"), ask("other"))
    finish(subject)
    assert retries(subject) == {"adder": 2}
    assert len([record for record in caplog.records if "is tried again as 2" in record.message]) == 1


def test_a_forward_that_ran_out_of_memory_is_tried_once_more() -> None:
    subject = engine()
    [id_] = submit(subject, ask("big"))
    assert result(finish(subject), id_)
    assert retries(subject) == {"adder": 1}


def test_a_request_that_always_runs_out_of_memory_fails_with_what_happened() -> None:
    subject = engine()
    bad, good = submit(subject, ask("huge"), ask("small"))
    events = finish(subject)
    [failed] = [e for e in events if isinstance(e, Failed)]
    assert failed.request_id == bad
    assert isinstance(failed.error, MemoryShortageError)
    assert str(failed.error) == "adder ran out of memory: tried to allocate 9 GiB"
    assert result(events, good)


@pytest.mark.parametrize("trouble", ["poisoned", "huge", "broken"])
def test_a_failure_keeps_nothing_alive_but_its_text(trouble: str) -> None:
    subject = engine()
    submit(subject, ask(trouble), ask("good"))
    [error] = [e.error for e in finish(subject) if isinstance(e, Failed)]
    adder = subject.runner.pipeline.ctx.components["adder"]
    assert not adder.activations, "the frames of the failed forwards are gone"
    assert error.__traceback__ is error.__cause__ is error.__context__ is None
    assert "Traceback" in "".join(error.__notes__)


def test_a_broken_device_ends_the_engine_and_everybody_is_told() -> None:
    subject = engine()
    ids = submit(subject, ask("fatal"), ask("good"), ask("waiting"))
    events = finish_or_die(subject)
    failed = [e for e in events if isinstance(e, Failed)]
    assert [e.request_id for e in failed] == ids
    assert all(isinstance(e.error, EngineDeadError) for e in failed)
    assert "the device cannot go on" in str(subject.dead)
    with pytest.raises(EngineDeadError, match="has died"):
        submit(subject, ask())


def finish_or_die(subject: Engine) -> list[Event]:
    events: list[Event] = []
    while subject.dead is None and not subject.idle:
        events += subject.tick()
    return events


class Falling(Runner):
    """A runner whose second tick with `requests` of them fails as a whole, after its work is done."""

    requests = 2
    falls = 2

    def execute(self, plan: TickPlan, events: list[Event]) -> None:
        full = len(self.jobs) + len(plan.admit) >= self.requests
        super().execute(plan, events)
        self.falls -= full
        if not self.falls:
            raise RuntimeError("nobody expected this")


def falling(clock: Clock | None = None) -> Engine:
    runner = Falling(FakePipeline(context()), ScheduleConfig(company="always"))
    return Engine(runner, Door.of(SPEC, {}, "fake"), clock or Clock())


def test_what_ended_in_a_tick_that_fails_is_told_all_the_same() -> None:
    subject = falling()
    quick, slow, cancelled = submit(
        subject, ask(num_inference_steps=2), ask(num_inference_steps=9), ask(num_inference_steps=9)
    )
    subject.tick()
    subject.cancel(cancelled)
    ends = {event.request_id: event for event in subject.tick() if isinstance(event, Done | Failed)}
    assert isinstance(ends[quick], Done)
    assert isinstance(ends[slow], Failed) and isinstance(ends[slow].error, EngineDeadError)
    assert isinstance(ends[cancelled], Failed) and isinstance(ends[cancelled].error, RequestCancelled)


def test_outputs_that_cannot_be_handed_over_fail_their_request_only() -> None:
    subject = engine()
    bad, good = submit(subject, ask("lost", num_inference_steps=1), ask("good"))
    events = finish(subject)
    assert [e.request_id for e in events if isinstance(e, Failed)] == [bad]
    assert result(events, good)


class Stuck:
    """Something that is remembered and moves so many times, and then no more."""

    def __init__(self, moves: int) -> None:
        self.moves = moves

    def to(self, device: torch.device) -> Stuck:
        self.moves -= 1
        if self.moves < 0:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB. There is more to say")
        return self


@pytest.mark.parametrize("moves", [0, 1], ids=["to where it waits", "back"])
def test_a_paused_state_that_cannot_be_moved_fails_its_request_only(moves: int) -> None:
    subject = engine()
    bad, good = submit(subject, ask(num_inference_steps=9), ask("good", num_inference_steps=9))
    subject.tick()
    subject.runner.states[f"{bad}/0"].memory("adder", "positive").data["stuck"] = Stuck(moves)
    subject.pause(bad)
    seen = subject.tick()
    if moves:
        assert not any(isinstance(event, Failed) for event in seen)
        subject.resume(bad)
    seen += finish(subject)
    assert [(type(e.error), e.request_id) for e in seen if isinstance(e, Failed)] == [(MemoryShortageError, bad)]
    assert result(seen, good) and not subject.runner.states


def test_a_preview_that_fails_is_left_out_and_counted() -> None:
    subject = engine()
    [id_] = submit(subject, ask("unseen", num_inference_steps=5, previews=1))
    events = finish(subject)
    assert result(events, id_)
    assert not [e for e in events if isinstance(e, Preview)]
    assert subject.runner.telling.lost_previews == 4


def test_a_paused_requests_deadline_still_ends_it_and_the_engine_knows_when() -> None:
    clock = Clock()
    subject = engine(clock)
    [id_] = submit(subject, ask(num_inference_steps=50, timeout=5.0))
    subject.tick()
    subject.pause(id_)
    subject.tick()
    assert subject.rest() == 5.0
    clock.now += 5.0
    assert subject.rest() == 0.0
    assert [e.request_id for e in subject.tick() if isinstance(e, Failed)] == [id_]
    assert subject.rest() is None


def test_a_paused_request_leaves_its_place_to_the_next() -> None:
    subject = engine(config=ScheduleConfig(max_running=1))
    first, second = submit(subject, ask(num_inference_steps=9), ask(num_inference_steps=9))
    subject.tick()
    subject.pause(first)
    assert result(finish(subject), second)
    subject.resume(first)
    assert result(finish(subject), first)


def test_a_request_that_runs_too_long_is_ended() -> None:
    clock = Clock()
    subject = engine(clock, ScheduleConfig(max_run=10.0))
    submit(subject, ask(num_inference_steps=50))
    events: list[Event] = []
    for _ in range(5):
        events += subject.tick()
        clock.now += 3.0
    [failed] = [e for e in events if isinstance(e, Failed)]
    assert "max_run=10" in str(failed.error)


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


def test_what_was_drawn_is_gone_with_who_has_it_though_the_engine_is_idle() -> None:
    with background() as subject:
        ear = Ear()
        subject.submit(subject.engine.make_request(ask()), ear)
        done = ear.wait()
        assert isinstance(done, Done)
        kept = weakref.ref(done.result.output)
        subject.between_ticks(lambda: None).result(10)  # the tick is over
        del done
        ear.events.clear()
        gc.collect()
        assert kept() is None


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


def test_an_interrupt_while_a_model_is_loaded_ends_the_loading() -> None:
    ended = threading.Event()

    def make() -> Engine:
        try:
            _thread.interrupt_main()
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started behind a shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            Background(make)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set(), "else it goes on for nobody, and Python's end falls over it"


@contextmanager
def background(**config: Any) -> Iterator[Background]:
    made = Background(lambda: engine(config=ScheduleConfig(**config)))
    yield made
    made.close()


def test_an_engine_that_dies_of_what_is_done_between_its_ticks_tells_it_to_all_who_wait() -> None:
    deaths: list[EngineDeadError] = []
    subject, ear = Background(engine, deaths.append), Ear()
    subject.submit(subject.engine.make_request(ask(num_inference_steps=10_000)), ear)
    subject.between_ticks(lambda: subject.engine.die(EngineDeadError("a rank is gone; start the engine again")))
    end = ear.wait()
    assert isinstance(end, Failed) and isinstance(end.error, EngineDeadError)
    assert str(end.error) == "the engine has died: a rank is gone; start the engine again"
    assert [str(death) for death in deaths] == [str(end.error)]
    subject.close()


class Slow(Engine):
    """Takes a request in, and says so only when it has been dead for a while."""

    def __init__(self, like: Engine) -> None:
        super().__init__(like.runner, like.door)
        self.taken_in, self.died = threading.Event(), threading.Event()

    def submit(self, request: Request) -> str:
        made = super().submit(request)
        self.taken_in.set()
        assert self.died.wait(30)
        time.sleep(0.2)
        return made


def test_who_is_let_in_while_the_engine_dies_hears_of_it() -> None:
    slow = Slow(engine())
    subject, ear = Background(lambda: slow, lambda dead: slow.died.set()), Ear()

    def die() -> None:
        assert slow.taken_in.wait(30)
        slow.die(EngineDeadError("a rank is gone"))

    subject.between_ticks(die)
    subject.submit(slow.make_request(ask()), ear)
    end = ear.wait()
    assert isinstance(end, Failed) and isinstance(end.error, EngineDeadError)
    subject.close()


class Ear:
    """A listener that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self.ended.set()

    def wait(self) -> Event:
        assert self.ended.wait(30)
        return self.events[-1]


def test_a_listener_that_raises_loses_its_own_request_only() -> None:
    def deaf(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    with background() as subject:
        subject.submit(subject.engine.make_request(ask(num_inference_steps=10_000)), deaf)
        ear = Ear()
        subject.submit(subject.engine.make_request(ask()), ear)
        assert isinstance(ear.wait(), Done)
        last = Ear()
        subject.submit(subject.engine.make_request(ask()), last)
        assert isinstance(last.wait(), Done)
        assert len(subject.engine.runner.jobs) == 0, "the deaf one's request is gone"


def test_a_dead_engine_tells_everybody_and_refuses_more() -> None:
    deaths: list[EngineDeadError] = []
    subject = Background(falling, deaths.append)
    ears = [Ear(), Ear()]
    for ear in ears:
        subject.submit(subject.engine.make_request(ask(num_inference_steps=50)), ear)
    for ear in ears:
        last = ear.wait()
        assert isinstance(last, Failed) and isinstance(last.error, EngineDeadError)
    assert len(deaths) == 1
    with pytest.raises(EngineDeadError, match="has died"):
        subject.submit(subject.engine.make_request(ask()), Ear())
    subject.close()


def test_an_engine_that_dies_between_two_ticks_tells_everybody_too(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[EngineDeadError] = []
    subject, ear = Background(engine, deaths.append), Ear()
    monkeypatch.setattr(subject.engine, "_settle", lambda event: {}["an engine with a fault"])
    subject.submit(subject.engine.make_request(ask()), ear)
    last = ear.wait()
    assert isinstance(last, Failed) and isinstance(last.error, EngineDeadError)
    assert "an engine with a fault" in str(last.error) and len(deaths) == 1
    with pytest.raises(EngineDeadError, match="has died"):
        subject.submit(subject.engine.make_request(ask()), Ear())
    subject.close()


@pytest.mark.parametrize("kind", [KeyError, RuntimeError])
def test_an_errand_that_fails_in_any_way_tells_who_waits_for_it_and_nobody_else(kind: type[Exception]) -> None:
    def fails() -> None:
        raise kind("an errand with a fault")

    with background() as subject:
        with pytest.raises(kind, match="an errand with a fault"):
            subject.between_ticks(fails).result()
        ear = Ear()
        subject.submit(subject.engine.make_request(ask()), ear)
        assert isinstance(ear.wait(), Done)


def test_pausing_and_resuming_wake_a_sleeping_engine() -> None:
    with background() as subject:
        ear, request = Ear(), subject.engine.make_request(ask(num_inference_steps=10_000))
        subject.submit(request, ear)
        subject.pause(request.id)
        while not subject.engine.idle:
            time.sleep(0.001)
        seen = len(ear.events)
        subject.resume(request.id)
        while len(ear.events) == seen:
            time.sleep(0.001)
        subject.cancel(request.id)
        assert isinstance(ear.wait(), Failed)


def test_a_sleeping_engine_wakes_for_a_deadline() -> None:
    subject = Background(lambda: engine(clock=time.monotonic))  # type: ignore[arg-type]
    ear, request = Ear(), subject.engine.make_request(ask(num_inference_steps=10_000, timeout=0.3))
    subject.submit(request, ear)
    subject.pause(request.id)
    last = ear.wait()
    assert isinstance(last, Failed) and isinstance(last.error, DeadlineError)
    subject.close()


def test_every_request_ends_exactly_once_when_the_engine_closes_while_others_submit() -> None:
    for _ in range(20):
        subject, ears, refused = Background(engine), list[Ear](), list[EngineClosedError]()

        def submit_some(subject: Background, ears: list[Ear], refused: list[EngineClosedError]) -> None:
            while not refused:
                ear = Ear()
                try:
                    subject.submit(subject.engine.make_request(ask()), ear)
                    ears.append(ear)
                except CapacityError:
                    continue
                except EngineClosedError as error:
                    refused.append(error)

        threads = [threading.Thread(target=submit_some, args=(subject, ears, refused)) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(ears) < 4:
            time.sleep(0.001)
        subject.close()
        for thread in threads:
            thread.join()
        for ear in ears:
            assert len([event for event in ear.events if isinstance(event, Done | Failed)]) == 1


def test_what_is_done_between_ticks_is_done_on_the_engines_thread_and_its_errors_are_told() -> None:
    subject = Background(engine)
    made_on = subject.between_ticks(threading.get_ident)
    assert made_on.result(10) not in (threading.get_ident(), None)
    assert subject.between_ticks(threading.get_ident).result(10) == made_on.result()
    with pytest.raises(ValueError, match="invalid literal"):
        subject.between_ticks(lambda: int("x")).result(10)
    assert subject.between_ticks(lambda: 7).result(10) == 7  # the engine lives
    begun, go_on = threading.Event(), threading.Event()
    subject.between_ticks(lambda: (begun.set(), go_on.wait(10)))
    assert begun.wait(10)
    late, closing = subject.between_ticks(lambda: 8), threading.Thread(target=subject.close)
    closing.start()
    go_on.set()
    closing.join(10)
    assert late.done() and (late.exception() is None or isinstance(late.exception(), EngineClosedError))
    with pytest.raises(EngineClosedError):
        subject.between_ticks(lambda: 9)
