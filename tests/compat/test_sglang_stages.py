"""Stages of a pipeline's own, pictures in, and videos: what SGLang's guide lets people change, against diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

from omnimuse import Config, ModelConfig, ParallelConfig
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Done, Event, Failed, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import stable_diffusion_3, wan
from tests.checkpoints.wishes import Reference, Wish, of_picture, photo, reference_of
from tests.compat.checkpoints import COMPOSED, renamed
from tests.compat.running import on_two_ranks

TOKENS = 24
PICTURES = reference_of(
    StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline, absent=("text_encoder_3", "tokenizer_3")
)
DRAWN = (
    Wish("a red circle", "grey", of_picture(4, 4.0, 64, 96, 7)),
    Wish("two squares", None, of_picture(3, 2.0, 64, 96, 8)),
    Wish("a star", None, of_picture(3, 1.0, 64, 32, 9)),
)
CHANGED = (
    Wish("a cross", "grey", replace(of_picture(6, 3.0, 48, 64, 10), strength=0.5), photo(50, 70)),
    Wish("a heart", None, replace(of_picture(5, 3.0, 64, 48, 11), strength=0.8), photo(64, 48)),
    Wish("a red circle", "grey", of_picture(4, 4.0, 64, 96, 7)),
)
FILMED = tuple(
    replace(wish, params=replace(wish.params, max_sequence_length=32)) for wish in wan.FAMILIES[1].wishes[::2]
)
EVEN = tuple(replace(wish, params=replace(wish.params, num_frames=13)) for wish in FILMED)
"""Videos whose latents have a number of frames that two ranks can share."""


def engine_of(folder: Path) -> Engine:
    model = ModelConfig(str(folder), "float32", "cpu", plugins=(COMPOSED,))
    return start(Config(model, schedule=ScheduleConfig(strict_slots=True, company="always")))


def made(engine: Engine, wishes: tuple[Wish, ...], extra: dict[str, object] | None) -> list[torch.Tensor]:
    """What every wish gives, all of them in company."""
    places = []
    for wish in wishes:
        params = replace(wish.params, output_type="pt", max_sequence_length=None, extra=extra)
        places.append(engine.submit(engine.make_request(Ask(wish.asked, params))))
    found = {}
    while not engine.idle:
        for event in engine.tick():
            assert not isinstance(event, Failed), event
            if isinstance(event, Done):
                found[event.request_id] = event.result.output[0]
    assert not engine.runner.forwards.retries
    return [found[place] for place in places]


def medium(folder: Path) -> Path:
    return stable_diffusion_3.build(folder, kind="3")


def of_pictures(folder: Path, wishes: tuple[Wish, ...], output_type: str) -> list[torch.Tensor]:
    tokens = [replace(wish, params=replace(wish.params, max_sequence_length=TOKENS)) for wish in wishes]
    return PICTURES(folder, tokens, output_type)


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize(
    ("arch", "build", "wishes", "reference"),
    [
        ("ComposedMediumPipeline", medium, DRAWN, of_pictures),
        ("ComposedMediumCombinedPipeline", medium, DRAWN, of_pictures),
        ("ComposedMediumWholePipeline", medium, DRAWN, of_pictures),
        ("ComposedMediumEditPipeline", medium, CHANGED, of_pictures),
        ("ComposedMotionPipeline", partial(wan.build, kind="A14B"), FILMED, wan.reference),
    ],
    ids=["own-stages", "own-guidance", "own-loop", "pictures", "videos"],
)
def test_it_draws_what_diffusers_draws_alone_and_in_company(
    arch: str,
    build: Callable[[Path], Path],
    wishes: tuple[Wish, ...],
    reference: Reference,
    tmp_path: Path,
) -> None:
    folder = build(tmp_path / "tiny")
    expected = reference(folder, wishes, "pt")
    extra = {"sampling": {"empty_tokens": TOKENS}} if "Medium" in arch else None
    engine = engine_of(renamed(folder, arch))
    try:
        alone = [each for wish in wishes for each in made(engine, (wish,), extra)]
        together = made(engine, wishes, extra)
    finally:
        engine.close()
    for wish, single, shared, right in zip(wishes, alone, together, expected, strict=True):
        torch.testing.assert_close(single, right, atol=1e-5, rtol=0, msg=lambda text, wish=wish: f"{wish}: {text}")
        torch.testing.assert_close(shared, right, atol=1e-5, rtol=0)


@pytest.mark.dist
@pytest.mark.crossed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("axis", ["ulysses", "ring"])
def test_two_ranks_share_the_frames_of_a_video(axis: str, tmp_path: Path) -> None:
    folder = wan.build(tmp_path / "tiny", kind="A14B")
    expected = wan.reference(folder, EVEN, "pt")
    model = ModelConfig(str(renamed(folder, "ComposedMotionPipeline")), "float32", "cpu", plugins=(COMPOSED,))
    chosen = Config(model, parallel=ParallelConfig(**{axis: 2}), schedule=ScheduleConfig(company="always"))  # type: ignore[arg-type]
    asked = [replace(wish, params=replace(wish.params, max_sequence_length=None)) for wish in EVEN]
    for found in on_two_ranks(chosen, asked, tmp_path / "meeting"):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_loop_of_its_own_is_told_of_paused_and_cancelled_between_its_steps(tmp_path: Path) -> None:
    folder = medium(tmp_path / "tiny")
    [expected] = of_pictures(folder, DRAWN[:1], "pt")
    engine = engine_of(renamed(folder, "ComposedMediumWholePipeline"))
    params = replace(DRAWN[0].params, output_type="pt", extra={"sampling": {"empty_tokens": TOKENS}})
    try:
        gone, kept = (engine.submit(engine.make_request(Ask(DRAWN[0].asked, params))) for _ in range(2))
        events: list[Event] = []
        while not any(isinstance(event, Progress) and event.stage == "denoise" for event in events):
            events += engine.tick()
        engine.cancel(gone)
        engine.pause(kept)
        events += engine.tick()
        engine.resume(kept)
        while not engine.idle:
            events += engine.tick()
    finally:
        engine.close()
    mine = [event for event in events if event.request_id == kept]
    [made] = [event.result.output[0] for event in mine if isinstance(event, Done)]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert [event.step for event in mine if isinstance(event, Progress) and event.stage == "denoise"] == [1, 2, 3, 4]


def test_what_a_pipeline_cannot_be_asked_is_refused_by_name(tmp_path: Path) -> None:
    engine = engine_of(renamed(medium(tmp_path / "tiny"), "ComposedMediumPipeline"))
    wish = DRAWN[0]
    refused = {
        "strength": replace(wish.params, strength=0.5),
        "num_frames": replace(wish.params, num_frames=5),
        "max_sequence_length": replace(wish.params, max_sequence_length=32),
        "negative_prompt means nothing": replace(wish.params, guidance_scale=1.0),
        "output_type='latent'": replace(wish.params, output_type="latent"),
        "extra.sampling must be a mapping": replace(wish.params, extra={"sampling": 3}),
    }
    try:
        for words, params in refused.items():
            with pytest.raises(RequestError, match=words):
                engine.make_request(Ask(wish.asked, params))
        with pytest.raises(RequestError, match="works from text only"):
            engine.make_request(Ask(CHANGED[0].asked, wish.params))
        place = engine.submit(
            engine.make_request(Ask(wish.asked, replace(wish.params, extra={"sampling": {"steps": 3}})))
        )
        failed = [event for _ in range(3) for event in engine.tick() if isinstance(event, Failed)]
        assert [(event.request_id, "has no field 'steps'" in str(event.error)) for event in failed] == [(place, True)]
    finally:
        engine.close()
