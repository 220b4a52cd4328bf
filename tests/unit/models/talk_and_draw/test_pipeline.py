"""A model that talks and draws: its picture is the one that its components draw alone, beside whatever company."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.caches import Fits, cache_named
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.output import Chunk, Event, Preview, Progress, Result
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.core.spec import OPTIONS
from omnimuse.engine.calibrate import calibrate
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, write_fits
from omnimuse.models.talk_and_draw.spec import marks
from omnimuse.pipeline.asked import between
from omnimuse.worker.explain import explain
from tests.checkpoints import qwen3, talk_and_draw
from tests.invariants.conftest import config, drain, results, submit
from tests.invariants.test_device import FAST
from tests.once import Once
from tests.second_device import SecondDevice, moved
from tests.skipping import counting, measured
from tests.waits import ticking, waits_of_steps

shows = partial(pytest.mark.shows, families=["TalkAndDrawPipeline"])
MARKED = Ask(
    {"prompt": qwen3.PROMPTS[0]},
    make_params(DiffusionParams(seed=7, output_type="pt"), {**qwen3.CHOICES[0]}),
    chunks=True,
)
"""Its answer has marks: the checkpoint was built so."""


@pytest.fixture(scope="module")
def folder(once: Once) -> Path:
    return once.folder("TalkAndDrawPipeline", talk_and_draw.build)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    made = start(config(folder))
    yield made
    assert not made.runner.forwards.retries
    made.close()


def chosen(**choices: Any) -> Ask:
    return replace(MARKED, params=make_params(MARKED.params, choices))


def run(engine: Engine, *asks: Ask) -> list[Result]:
    ids = submit(engine, *asks)
    return results(engine, drain(engine), ids)


def asked(engine: Engine, result: Result) -> str:
    """What stands between the first marks of an answer."""
    ctx = engine.runner.pipeline.ctx
    words: str = ctx.components["words"].decode(between(result.written[0].tokens, *marks(ctx.configs))[0])
    return words.strip()


@pytest.mark.shows("text out", "picture out", "company", "scheduler", families=["TalkAndDrawPipeline"])
def test_the_picture_is_the_one_that_its_components_draw_of_the_same_words_and_seed(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    plain, other = chosen(), chosen(num_inference_steps=4, height=48, guidance_scale=0.0, scheduler="heun")
    found = [*run(engine, plain), *run(engine, other), *run(engine, plain, other, chosen(max_tokens=4), chosen(seed=9))]
    alone = start(config(talk_and_draw.drawing(folder, tmp_path / "alone")))
    expected = run(alone, *(Ask(asked(engine, found[0]), replace(ask.params, extra=None)) for ask in (plain, other)))
    alone.close()
    for result, picture in zip(found, (*expected, *expected), strict=False):
        assert torch.allclose(result.tensors["image"], picture.output, atol=1e-5)
    assert found[1].tensors["image"].shape == (1, 3, 48, 48)
    assert list(found[4].tensors) == ["text"], "its answer ends before the second mark"


@pytest.mark.shows("attention", "picture out", families=["TalkAndDrawPipeline"])
def test_a_backend_of_attention_is_that_of_what_draws(engine: Engine, folder: Path) -> None:
    [expected] = run(engine, chosen())
    other = start(config(folder, attention=AttentionConfig("reference")))
    [found] = run(other, chosen())
    other.close()
    assert found.written[0].tokens == expected.written[0].tokens
    assert torch.allclose(found.tensors["image"], expected.tensors["image"], atol=1e-5)


SKIPPING = (
    pytest.param("teacache,threshold=1e6", marks=shows("TeaCache", "company")),
    pytest.param("dbcache,threshold=9,warm_up=2", marks=shows("DBCache", "company")),
    pytest.param("taylorseer,threshold=9,warm_up=2", marks=shows("TaylorSeer", "company")),
    pytest.param("magcache,threshold=9,warm_up=1", marks=shows("MagCache", "company")),
    pytest.param("dbcache,first=0,forced=true,mask=11010", marks=shows("step masks", "company")),
)


@pytest.mark.parametrize("choice", SKIPPING)
def test_a_step_cache_skips_steps_of_the_picture_and_leaves_its_words_as_they_are(
    engine: Engine, folder: Path, tmp_path: Path, choice: str
) -> None:
    plain, cached = chosen(num_inference_steps=5), chosen(num_inference_steps=5, cache=choice)
    [exact], [alone] = run(engine, plain), run(measured(engine), cached)
    with counting(engine) as skipped:
        found = run(engine, cached, plain)
    known = shutil.copytree(folder, tmp_path / "known")
    write_fits(known / NAME, Fits(ratios=(1.0,), auto="none"), {})
    other = start(config(known, cache=cache_named(choice)))
    with counting(other) as of_all:
        found += run(other, plain)
    other.close()
    assert sorted(map(bool, skipped.values())) == [False, True] and all(of_all.values())
    assert all(result.written[0].tokens == exact.written[0].tokens for result in (alone, *found))
    for result, expected in zip(found, (alone, exact, alone), strict=True):
        assert torch.allclose(result.tensors["image"], expected.tensors["image"], atol=1e-5)
    assert not torch.allclose(alone.tensors["image"], exact.tensors["image"], atol=1e-4)


@pytest.mark.costly
@pytest.mark.slow
def test_a_second_device_skips_what_the_cpu_skips_and_waits_in_no_step_but_for_a_cache_to_decide(folder: Path) -> None:
    looking = ("teacache,threshold=1e6", "dbcache,threshold=9,warm_up=1")
    blind = ("none", "magcache,threshold=9,warm_up=1", "dbcache,first=0,forced=true,mask=110110")
    asks = {choice: chosen(num_inference_steps=6, cache=choice) for choice in (*looking, *blind)}
    engine = measured(start(config(folder, schedule=FAST)))
    with SecondDevice() as device:
        expected = run(engine, *asks.values())
        there = moved(engine, device)
        for found, plain in zip(run(there, *asks.values()), expected, strict=True):
            assert found.written == plain.written
            assert torch.equal(found.tensors["image"], plain.tensors["image"])
        for choice, ask in asks.items():
            submit(there, ask)
            ticks = waits_of_steps(there.runner, device, ticking(there))["denoise"]
            assert ticks and any(found for _, found in ticks) == (choice in looking), choice
            assert all(len(found) in (0, forwards) for forwards, found in ticks), choice
    engine.close()


def test_it_is_measured_for_its_step_caches_by_the_pictures_that_answers_ask_for(folder: Path) -> None:
    made, told = start(config(folder)), chosen(num_inference_steps=5)
    found = calibrate(made, [told], 1e6)
    assert found.fits.auto != "none" and min(trial.work for trial in found.trials) < 0.9
    with pytest.raises(RequestError, match=r"asks for no picture; say what to draw"):
        calibrate(made, [chosen(max_tokens=4)], 1e6)
    made.close()


@pytest.mark.shows("text out", "picture out", "previews", families=["TalkAndDrawPipeline"])
def test_text_comes_while_it_is_written_and_the_picture_after_it(engine: Engine) -> None:
    [id_] = submit(engine, replace(chosen(output_type="pil"), previews=1))
    events: list[Event] = drain(engine)
    [result] = results(engine, events, [id_])
    kinds = [type(event) for event in events if isinstance(event, Chunk | Preview)]
    drawn = [e.step for e in events if isinstance(e, Progress) and e.stage == "denoise" and e.steps == 3]
    assert {*kinds} == {Chunk, Preview} and kinds == sorted(kinds, key=[Chunk, Preview].index)
    assert drawn == [1, 2, 3]
    assert [part.medium for part in result.parts[0]] == ["text", "image"]
    assert result.images[0].size == (48, 32)
    assert "".join(event.data for event in events if isinstance(event, Chunk)) == result.text
    assert result.prompt_tokens == len(qwen3.prompt_ids(folder_of(engine), qwen3.PROMPTS[0]))


def folder_of(engine: Engine) -> Path:
    """Where the tokenizer of its language model is."""
    return Path(engine.runner.pipeline.ctx.components["words"]._folder)


def test_of_several_outputs_those_have_a_picture_that_ask_for_one(engine: Engine) -> None:
    opens, closes = marks(engine.runner.pipeline.ctx.configs)
    mixed = 0
    for temperature in (0.02, 0.05, 0.1, 0.2, 0.4):
        [result] = run(engine, chosen(temperature=temperature, num_outputs_per_prompt=4, output_type="pil"))
        wanted = [bool(between(written.tokens, opens, closes)) for written in result.written]
        assert [len(parts) == 2 for parts in result.parts] == wanted
        mixed += len(set(wanted)) == 2
    assert mixed, "of one request, some must ask and some not"


def test_one_that_is_paused_while_it_draws_and_one_that_is_cancelled_change_nothing(engine: Engine) -> None:
    [expected] = run(engine, chosen())
    kept, gone = submit(engine, chosen(), chosen(seed=8))
    while not any(state.request.id == kept and "noise" in state for state in engine.runner.states.values()):
        engine.tick()
    engine.pause(kept)
    engine.cancel(gone)
    engine.tick()
    engine.resume(kept)
    [found] = results(engine, drain(engine), [kept])
    assert torch.equal(found.tensors["image"], expected.tensors["image"])
    assert not engine.runner.states


def test_the_first_of_several_is_drawn_and_that_is_told(engine: Engine) -> None:
    opens, closes = 1, 2
    assert between([5, 1, 6, 1, 7, 2, 8, 2, 1, 9, 2, 1, 4], opens, closes) == [[6, 1, 7], [9]]
    ctx = engine.runner.pipeline.ctx
    [result] = run(engine, chosen(max_tokens=200))
    several = len(between(result.written[0].tokens, *marks(ctx.configs)))
    assert (several > 1) == any("pictures; the first of them was drawn" in said for said in result.said)


def test_that_it_draws_is_explained(folder: Path) -> None:
    found = {(choice.topic, choice.name): choice.value for choice in explain(config(folder))}
    assert found["limits", "picture"] == "beside a text"
    assert ("defaults", "strength") not in found, "it starts from no picture"


@pytest.mark.parametrize("told", [None, [3], [3, 3], "marks", [3, "x"]])
def test_a_checkpoint_must_say_between_which_tokens_a_picture_is_asked_for(told: Any) -> None:
    with pytest.raises(ModelError, match="are not two tokens between which"):
        marks({OPTIONS: {"draw_token_ids": told}})
