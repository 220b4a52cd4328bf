"""Submitting, pausing, resuming, cancelling and closing in every order, against a model of what must hold."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import (
    DeadlineError,
    EngineClosedError,
    MemoryShortageError,
    ModelError,
    OmnimuseError,
    RequestCancelled,
)
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.request import Request
from tests.fakes import Clock, ask, engine

PLACES = 3
BAD: dict[str, type[OmnimuseError]] = {"broken": ModelError, "poisoned": ModelError, "huge": MemoryShortageError}


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> None:
    """Each shortage of memory has garbage collected: what other tests hold need not be looked at a hundred times."""
    gc.collect()
    gc.freeze()


@dataclass
class Known:
    """What the model knows of one request."""

    request: Request
    paused: bool = False
    cancelled: bool = False
    steps: int = 0
    ends: list[Event] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return bool(self.ends)

    def expected(self) -> Tensor:
        """What the fake family makes of it, alone or in company."""
        steps = self.request.params.num_inference_steps or 1
        outputs = [
            (torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(self.request.seed(index))), steps)
            for index in range(self.request.outputs)
        ]
        added = torch.tensor(float(len(self.request.prompt)))
        pictures = []
        for latents, count in outputs:
            for _ in range(count):
                latents = latents + torch.full_like(latents, float(added))
            pictures.append(latents.sigmoid())
        return torch.stack(pictures)


class EngineMachine(RuleBasedStateMachine):
    """One engine with few places, and everything that may be done to it."""

    requests = Bundle("requests")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        config = ScheduleConfig(max_running=PLACES, tick_tokens=8, slice=2.0, patience=20.0, strict_slots=True)
        self.engine = engine(self.clock, config)
        self.known: dict[str, Known] = {}

    @rule(
        target=requests,
        prompt=st.sampled_from(["a", "abc", "broken", "poisoned", "huge"]),
        steps=st.integers(1, 6),
        outputs=st.integers(1, 2),
        tenant=st.sampled_from(["", "other"]),
        priority=st.integers(-2, 2),
        timeout=st.sampled_from([None, None, 5.0, 50.0]),
    )
    def submit(self, prompt: str, steps: int, outputs: int, tenant: str, priority: int, timeout: float | None) -> str:
        asked = ask(
            prompt, num_inference_steps=steps, num_outputs_per_prompt=outputs, tenant=tenant, priority=priority,
            timeout=timeout, seed=len(self.known),
        )  # fmt: skip
        request = self.engine.make_request(asked)
        self.engine.submit(request)
        self.known[request.id] = Known(request)
        return request.id

    @rule(seconds=st.sampled_from([0.0, 0.1, 3.0]), ticks=st.integers(1, 4))
    def tick(self, seconds: float, ticks: int) -> None:
        for _ in range(ticks):
            self.clock.now += seconds
            self.hear(self.engine.tick())

    @rule(id_=requests)
    def cancel(self, id_: str) -> None:
        self.engine.cancel(id_)
        if id_ in self.known:
            self.known[id_].cancelled = True

    @rule(id_=requests, paused=st.booleans())
    def pause_or_resume(self, id_: str, paused: bool) -> None:
        if id_ in self.known and not self.known[id_].over:
            (self.engine.pause if paused else self.engine.resume)(id_)
            self.known[id_].paused = paused

    @rule()
    def close(self) -> None:
        """Nothing is left, nothing is accepted; then there is another engine."""
        request = self.engine.make_request(ask())
        self.engine.close()
        assert not self.engine.runner.states and not self.engine.runner.jobs
        with pytest.raises(EngineClosedError):
            self.engine.submit(request)
        self.begin()

    def hear(self, events: list[Event]) -> None:
        for event in events:
            known = self.known[event.request_id]
            assert not known.over, "nothing comes after the end"
            if isinstance(event, Done | Failed):
                known.ends.append(event)
                self.judge(known, event)
            elif isinstance(event, Progress) and event.stage == "add":
                assert not known.paused, "a paused request stands still"
                known.steps += 1

    def judge(self, known: Known, event: Done | Failed) -> None:
        request = known.request
        if isinstance(event, Done):
            assert request.prompt not in BAD or (request.prompt != "broken" and request.params.num_inference_steps == 1)
            assert torch.equal(event.result.output, known.expected())
        elif isinstance(event.error, DeadlineError):
            assert request.deadline is not None and request.deadline <= self.clock.now
        elif isinstance(event.error, RequestCancelled):
            assert known.cancelled
        else:
            assert type(event.error) is BAD[request.prompt]

    @invariant()
    def what_is_over_is_gone(self) -> None:
        living = {id_ for id_, known in self.known.items() if not known.over}
        assert set(self.engine.scheduler.entries) == living
        assert {state.request.id for state in self.engine.runner.states.values()} <= living

    @invariant()
    def nobody_runs_without_a_place(self) -> None:
        active = [entry for entry in self.engine.scheduler.entries.values() if entry.active]
        outputs = sum(len(entry.live) for entry in active)
        assert outputs <= PLACES or len(active) == 1

    def teardown(self) -> None:
        """Whatever happened, all that is not paused ends, and then the paused ones do."""
        for known in self.known.values():
            if known.paused and not known.over:
                self.engine.resume(known.request.id)
                known.paused = False
        work = sum(
            known.request.outputs * (known.request.params.num_inference_steps or 1) for known in self.known.values()
        )
        for _ in range(work + 10 * len(self.known)):
            self.hear(self.engine.tick())
        assert self.engine.rest() is None
        assert all(len(known.ends) == 1 for known in self.known.values())
        assert not self.engine.runner.states and not self.engine.runner.jobs


EngineMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestEngineMachine = EngineMachine.TestCase
