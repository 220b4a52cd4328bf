"""The promises of the house for models that write and speak at once, with tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import OffloadConfig
from omnimuse.core.errors import NumericalError
from omnimuse.core.output import Chunk, Done, Event, Failed, Progress, Result
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.media.picture import picture_of
from tests.checkpoints.families import ANSWERERS
from tests.checkpoints.wishes import Answerer, chord, photo
from tests.invariants.conftest import config, drain, results, spoil, submit, tick
from tests.turns import in_turns

PICTURE, SOUND = picture_of(photo(40, 24)), chord(16_000, 0.5, 1)
TALKS: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "a red circle"}]},
    {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "audio"}]}],
        "images": [PICTURE],
        "sounds": [SOUND],
    },
    {"messages": [{"role": "system", "content": "one two three " * 60}, {"role": "user", "content": "a star"}]},
)


@pytest.fixture(
    scope="module", params=in_turns(ANSWERERS, "Qwen3OmniMoeForConditionalGeneration", lambda answerer: answerer.name)
)
def answerer(request: pytest.FixtureRequest) -> Answerer:
    found: Answerer = request.param
    return found


@pytest.fixture(scope="module")
def teller(answerer: Answerer) -> Answerer:
    return answerer


def ask(number: int, **choices: Any) -> Ask:
    usual = {"modalities": ("text", "audio"), "max_tokens": 10, "temperature": 0.8}
    return Ask(TALKS[number], make_params(DiffusionParams(seed=5 + number), {**usual, **choices}), chunks=True)


def heard(result: Result) -> Tensor:
    [sound] = [part.data for part in result.parts[0] if part.medium == "audio"]
    return torch.from_numpy(sound.samples)


def alike(found: Result, expected: Result) -> bool:
    """Whether both say the same, and sound the same but for how sums are rounded in other company."""
    ours, theirs = heard(found), heard(expected)
    same = [note.tokens for note in found.written] == [note.tokens for note in expected.written]
    same = same and ours.shape == theirs.shape
    return same and float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


@pytest.fixture(scope="module")
def alone(engine: Engine) -> list[Result]:
    """What each gives by itself."""
    found = []
    for number in range(len(TALKS)):
        ids = submit(engine, ask(number))
        found += results(engine, drain(engine), ids)
    return found


@pytest.mark.shows("text out", "sound out", "pictures shown", "sounds heard", "company")
def test_who_is_cancelled_is_gone_and_the_others_answer_as_they_do_alone(engine: Engine, alone: list[Result]) -> None:
    ids = submit(engine, *(ask(number) for number in range(len(TALKS))), ask(1))
    events: list[Event] = []
    while sum(isinstance(event, Progress) and event.stage == "talk" for event in events) < 6:
        events += tick(engine)
    engine.cancel(ids[-1])
    events += drain(engine)
    for found, expected in zip(results(engine, events, ids[:-1]), alone, strict=True):
        assert alike(found, expected)
    assert not engine.runner.states


def test_what_is_no_number_is_not_said_and_ends_its_request(engine: Engine, alone: list[Result]) -> None:
    bad, good = submit(engine, ask(1), ask(0))
    spoil(engine, bad)
    events = drain(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.request_id == bad and isinstance(failed.error, NumericalError)
    assert alike(results(engine, events, [good])[0], alone[0])


def test_who_waits_in_mid_word_answers_as_if_nothing_had_been(engine: Engine, alone: list[Result]) -> None:
    [id_] = submit(engine, ask(1))
    events: list[Event] = []
    while sum(isinstance(event, Progress) and event.stage == "talk" for event in events) < 3:
        events += tick(engine)
    engine.pause(id_)
    events += engine.tick()
    assert not any(isinstance(event, Done) for event in events)
    engine.resume(id_)
    events += drain(engine)
    assert alike(results(engine, events, [id_])[0], alone[1])


def test_who_writes_does_not_wait_until_another_has_said_all(measuring: Engine) -> None:
    [first] = submit(measuring, ask(0))
    while not any("reply" in state for state in measuring.runner.states.values()):
        tick(measuring)
    [second] = submit(measuring, ask(1, max_tokens=60))
    steps: list[tuple[str, str]] = []
    while first in measuring.scheduler.entries:
        steps += [(event.request_id, event.stage) for event in tick(measuring) if isinstance(event, Progress)]
    assert steps.count((first, "talk")) > 4 and steps.count((second, "generate")) > 2
    drain(measuring)


def test_it_speaks_while_it_still_writes(engine: Engine, answerer: Answerer) -> None:
    [id_] = submit(engine, ask(0, max_tokens=60))
    events = drain(engine)
    kinds = [event.medium if isinstance(event, Chunk) else "" for event in events]
    wrote = max(
        place for place, event in enumerate(events) if isinstance(event, Progress) and event.stage == "generate"
    )
    said = min(place for place, event in enumerate(events) if isinstance(event, Progress) and event.stage == "talk")
    assert said < wrote, "codes are said meanwhile"
    assert kinds.index("audio") < wrote or not answerer.meanwhile
    results(engine, events, [id_])


@pytest.mark.parametrize("mode", ["components", "layers"])
def test_weights_that_wait_elsewhere_answer_the_same(
    folder: Path, alone: list[Result], mode: Any, tmp_path: Path
) -> None:
    away = start(config(folder, offload=OffloadConfig(mode=mode, folder=tmp_path)))
    try:
        ids = submit(away, ask(1))
        [found] = results(away, drain(away), ids)
    finally:
        away.close()
    assert alike(found, alone[1])
