"""Several tracks of one state: chains of stages that go on beside each other, joined by slots that grow."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.request import Door
from omnimuse.engine.engine import Engine
from omnimuse.pipeline.pipeline import Pipeline, PipelineError
from omnimuse.pipeline.stage import Context, Loop, Row, Stage, Step
from omnimuse.pipeline.state import State
from omnimuse.pipeline.stream import Stream
from omnimuse.worker.runner import Runner
from tests.fakes import SPEC, Add, Encode, ask, context

PAIR = 2


class Say(Add):
    """As `Add`, and puts what it has after every step into a stream."""

    writes = ("latents", "said")
    streams = ("said",)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state["said"] = Stream()
        return super().begin(ctx, state)

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        super().apply(ctx, state, step, predictions)
        state["said"].put(state["latents"])

    def finish(self, ctx: Context, state: State) -> None:
        state["said"].close()


class Hear(Loop):
    """Adds up what was said, two at a time."""

    name = "hear"
    reads = ("said",)
    writes = ("image",)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        state.working["heard"], state.working["sum"] = 0, torch.zeros(())
        return [Step(0)]

    def ready(self, ctx: Context, state: State) -> bool:
        return state["said"].closed or len(state["said"].items) >= state.working.get("heard", 0) + PAIR

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        if state.request.prompt == "deaf":
            raise ValueError("nothing is heard")
        items = state["said"].items[state.working["heard"] :][:PAIR]
        state.working["sum"] = state.working["sum"] + sum(items)
        state.working["heard"] += len(items)
        if state.working["heard"] < len(state["said"].items) or not state["said"].closed:
            state.plan.append(Step(step.index + 1))

    def finish(self, ctx: Context, state: State) -> None:
        state["image"] = state.working["sum"].sigmoid()


class Both(Pipeline):
    """Says and hears."""

    spec = SPEC
    tracks = ((Encode(), Say()), (Hear(),))


def engine() -> Engine:
    runner = Runner(Both(context()), ScheduleConfig(strict_slots=True, company="always"))
    return Engine(runner, Door.of(SPEC, {}, "fake"))


def run(subject: Engine, events: list[Event]) -> dict[str, Tensor]:
    while not subject.idle:
        events += subject.tick()
    return {event.request_id: event.result.tensors["image"][0] for event in events if isinstance(event, Done)}


def test_one_track_goes_on_while_the_other_does() -> None:
    subject, events = engine(), list[Event]()
    [id_] = [subject.submit(subject.make_request(ask(num_inference_steps=5, seed=3)))]
    found = run(subject, events)[id_]
    order = [(event.stage, event.step) for event in events if isinstance(event, Progress)]
    assert order.index(("hear", 1)) < order.index(("add", 3)), "it is heard before all is said"
    assert [step for stage, step in order if stage == "hear"] == [1, 2, 3]
    request = Door.of(SPEC, {}, "fake").make_request(ask(num_inference_steps=5, seed=3), 0.0, 1)
    assert torch.equal(found, Both(context()).forward(request)[0]), "the verbs are the same code path"


def test_what_is_paused_in_mid_word_goes_on_where_it_was_in_every_track() -> None:
    alone, subject, events = engine(), engine(), list[Event]()
    asks = [ask(num_inference_steps=steps, seed=seed) for steps, seed in ((7, 1), (4, 2))]
    expected = []
    for each in asks:
        id_ = alone.submit(alone.make_request(each))
        expected.append(run(alone, [])[id_])
    ids = [subject.submit(subject.make_request(each)) for each in asks]
    for _ in range(3):
        events += subject.tick()
    subject.pause(ids[0])
    for _ in range(3):
        events += subject.tick()
    subject.resume(ids[0])
    found = run(subject, events)
    for id_, one in zip(ids, expected, strict=True):
        assert torch.equal(found[id_], one)


def test_a_track_that_fails_ends_its_request_alone() -> None:
    subject, events = engine(), list[Event]()
    bad = subject.submit(subject.make_request(ask("deaf", num_inference_steps=5)))
    good = subject.submit(subject.make_request(ask(num_inference_steps=5)))
    found = run(subject, events)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert set(found) == {good}
    assert not subject.runner.states


def test_what_both_tracks_touched_is_freed_when_the_last_of_them_is_behind_it() -> None:
    pipeline = Both(context())
    [state] = pipeline.states(Door.of(SPEC, {}, "fake").make_request(ask(), 0.0, 1))
    pipeline.prepare_encode([state])
    for _ in range(3):
        pipeline.step_scheduler([state], pipeline.denoise_step([state]))
    assert "said" in state and "latents" not in state
    pipeline.post_decode([state])
    assert "said" not in state and "image" in state


def declare(*tracks: tuple[Stage, ...]) -> None:
    type("Declared", (Pipeline,), {"spec": SPEC, "tracks": tracks})


def test_tracks_are_joined_by_what_is_streamed_and_by_nothing_else() -> None:
    class Quiet(Say):
        streams = ()

    class Boast(Say):
        streams = ("said", "more")

    with pytest.raises(PipelineError, match="reads 'said' of another track, which stage add does not stream"):
        declare((Encode(), Quiet()), (Hear(),))
    with pytest.raises(PipelineError, match="stage add streams 'more', which it does not write"):
        declare((Encode(), Boast()), (Hear(),))
