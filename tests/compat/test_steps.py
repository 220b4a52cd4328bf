"""A pipeline that gives its loop away in four methods: it batches, stops, shows itself and waits as ours do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse import Config, ModelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.worker.build import build as build_engine
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import PLUGIN, renamed
from tests.invariants.conftest import drain

FAMILY = next(each for each in FAMILIES if each.kind == "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("contract") / "tiny", kind="3")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[torch.Tensor]:
    return FAMILY.reference(renamed(folder, "StableDiffusion3Pipeline"), FAMILY.wishes, "pt")


def config(folder: Path, tier: str = "fast") -> Config:
    model = ModelConfig(str(renamed(folder, "DocumentedStepPipeline")), "float32", "cpu", plugins=(PLUGIN,))
    return Config(model, schedule=ScheduleConfig(strict_slots=True, company="always", tier=tier))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(folder: Path, expected: list[torch.Tensor]) -> Iterator[Engine]:
    made = start(config(folder))
    yield made
    made.close()


def submit(engine: Engine, wish: Wish, previews: int = 0) -> str:
    ask = Ask(wish.asked, replace(wish.params, output_type="pt"), previews=previews)
    return engine.submit(engine.make_request(ask))


def pictures(events: list[Event]) -> dict[str, torch.Tensor]:
    assert not [event for event in events if isinstance(event, Failed)]
    return {event.request_id: event.result.tensors["image"][0] for event in events if isinstance(event, Done)}


def test_requests_alike_share_every_forward(engine: Engine) -> None:
    wish = FAMILY.wishes[0]
    before = engine.runner.forwards.count
    for seed in (1, 2, 3):
        submit(engine, replace(wish, params=replace(wish.params, seed=seed)))
    drain(engine)
    assert engine.runner.forwards.count - before == wish.params.num_inference_steps
    assert not engine.runner.forwards.retries


def test_one_event_tells_of_every_step_and_previews_come_between(engine: Engine) -> None:
    wish = FAMILY.wishes[0]
    submit(engine, wish, previews=1)
    events = drain(engine)
    steps = [event.step for event in events if isinstance(event, Progress) and event.stage == "denoise"]
    assert steps == list(range(1, (wish.params.num_inference_steps or 0) + 1))
    shown = [event.image.shape for event in events if isinstance(event, Preview)]
    assert shown == [(wish.params.height, wish.params.width, 3)] * (len(steps) - 1)


def test_cancelled_between_steps_it_leaves_the_others_as_they_were(
    engine: Engine, expected: list[torch.Tensor]
) -> None:
    gone, kept = submit(engine, FAMILY.wishes[0]), submit(engine, FAMILY.wishes[1])
    engine.tick()
    engine.cancel(gone)
    events = drain(engine)
    done = {event.request_id: event.result for event in events if isinstance(event, Done)}
    assert set(done) == {kept}
    torch.testing.assert_close(done[kept].tensors["image"][0], expected[1], atol=1e-5, rtol=0)


def test_paused_and_resumed_it_draws_the_same(engine: Engine, expected: list[torch.Tensor]) -> None:
    place = submit(engine, FAMILY.wishes[0])
    engine.tick()
    engine.pause(place)
    events = engine.tick()
    engine.resume(place)
    events += drain(engine)
    torch.testing.assert_close(pictures(events)[place], expected[0], atol=1e-5, rtol=0)


def test_its_weights_leave_and_come_back_while_it_rests(engine: Engine, expected: list[torch.Tensor]) -> None:
    place = submit(engine, FAMILY.wishes[0])
    engine.tick()
    assert engine.sleep() > 0
    pipe = engine.runner.pipeline.ctx.components["pipeline"].pipe
    assert {tensor.device.type for tensor in pipe.parameters()} == {"meta"}
    engine.wake_up()
    torch.testing.assert_close(pictures(drain(engine))[place], expected[0], atol=1e-5, rtol=0)


def test_a_tier_that_cannot_be_promised_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="tier=invariant cannot be"):
        build_engine(config(folder, "invariant"))
