"""A warm-up is the smallest legal request, or what was asked for; it never keeps a worker from being ready."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from omnimuse.core.caches import cache_named
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door
from omnimuse.core.spec import Configs, Limits
from omnimuse.deploy.warming import warm_up
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import Background, start
from omnimuse.layers.stack import Memory
from omnimuse.offload.residency import Residency
from omnimuse.worker.warm_up import describe, warm_up_ask
from tests import fakes

PICTURES = Door.of(fakes.SPEC, {}, "fake")


def video_limits(configs: Configs) -> Limits:
    return Limits(size_multiple=16, max_side=64, max_sequence_length=32, frame_step=4, max_frames=21)


VIDEOS = Door.of(
    replace(
        fakes.SPEC,
        limits=video_limits,
        supported=frozenset({"num_frames"}),
        defaults=replace(fakes.SPEC.defaults, num_frames=21, num_inference_steps=50, height=64, width=64),
    ),
    {},
    "fake",
)


def drawn(wanted: str, door: Door) -> str:
    ask = warm_up_ask(wanted, door)
    return "nothing" if ask is None else describe(ask)


def test_the_smallest_legal_request_has_one_unit_a_side_one_frame_and_as_few_steps_as_can_be() -> None:
    assert drawn("small", PICTURES) == "8x8, 1 step"
    assert drawn("small", VIDEOS) == "16x16x1, 1 step"


def test_steps_that_a_schedule_needs_or_a_checkpoint_fixes_are_kept() -> None:
    needed = replace(PICTURES.limits, min_steps=3)
    assert drawn("small", replace(PICTURES, limits=needed)) == "8x8, 3 steps"
    fixed = replace(PICTURES.limits, fixed=DiffusionParams(num_inference_steps=4))
    assert drawn("small", replace(PICTURES, limits=fixed)) == "8x8, 4 steps"


@pytest.mark.parametrize("mask", ["slow", "10110"])
@pytest.mark.parametrize("needs", ["schedule", "scheduler"])
@pytest.mark.parametrize("chosen", [True, False], ids=["chosen", "unchosen"])
def test_a_mask_of_all_who_choose_no_step_cache_keeps_no_warm_up_away(mask: str, needs: str, chosen: bool) -> None:
    door = replace(PICTURES, cache=cache_named(f"dbcache,first=2,order=1,mask={mask},forced=true"))
    if needs == "schedule":
        door = replace(door, limits=replace(door.limits, min_steps=2))
    else:
        door = replace(door, scheduler={"_class_name": "PNDMScheduler", "skip_prk_steps": True})
    if not chosen:
        door = replace(door, limits=replace(door.limits, refuses={"cache": "it is chosen for all"}))
    ask = warm_up_ask("small", door)
    assert ask is not None
    made = door.make_request(ask, 0.0, 0)
    assert made.evaluations > 1
    assert made.params.cache == (
        "dbcache,threshold=0.24,first=2,last=0,warm_up=4,in_a_row=3,order=1" if chosen else None
    )


def test_the_default_is_the_model_s_own_size() -> None:
    assert [drawn("default", door) for door in (PICTURES, VIDEOS)] == ["its own size"] * 2
    ask = warm_up_ask("default", VIDEOS)
    assert ask is not None
    made = VIDEOS.make_request(ask, 0.0, 0).params
    assert (made.width, made.height, made.num_frames, made.num_inference_steps) == (64, 64, 21, 1)


def test_none_draws_nothing_and_a_size_is_that_size() -> None:
    assert drawn("none", PICTURES) == "nothing"
    assert drawn("64x32", PICTURES) == "64x32, 1 step"
    assert drawn("64X32x5", VIDEOS) == "64x32x5, 1 step"


@pytest.mark.parametrize(
    ("wanted", "door", "words"),
    [
        ("big", PICTURES, "--warm-up big is not understood; use none, small, default, or a size as WxH"),
        ("64", PICTURES, "--warm-up 64 is not understood"),
        ("20x32", PICTURES, "--warm-up 20x32 does not fit this model: width=20 is not a multiple of 8; use 16 or 24"),
        ("32x32x5", PICTURES, "num_frames means nothing to fake"),
        ("32x32x6", VIDEOS, "num_frames=6 is not 4k [+] 1; use 5 or 9"),
    ],
)
def test_what_no_worker_could_draw_is_refused(wanted: str, door: Door, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        warm_up_ask(wanted, door)


Log = pytest.LogCaptureFixture


@pytest.fixture
def log(caplog: Log) -> Log:
    caplog.set_level(logging.INFO, "omnimuse")
    return caplog


def works_after(engine: Engine, wanted: str = "small", patience: float = 60.0) -> bool:
    """Warm `engine` up, and whether it still draws afterwards."""
    background = Background(lambda: engine)
    try:
        warm_up(background, wanted, patience)
        ended = threading.Event()
        after = engine.make_request(Ask("after", DiffusionParams(num_inference_steps=1)))
        background.submit(after, lambda event: ended.set())
        return ended.wait(60)
    finally:
        background.close()


def test_a_warm_up_is_logged_with_what_it_took(log: Log) -> None:
    assert works_after(fakes.engine())
    [line] = log.records
    assert line.levelname == "INFO"
    assert re.fullmatch(r"warming up with 8x8, 1 step, \d+\.\d s", line.getMessage())


def test_what_others_of_its_kind_take_is_known_where_a_warm_up_is_large_enough(z_image_folder: Path) -> None:
    engine = start(Config(ModelConfig(str(z_image_folder), dtype="float32", device="cpu")))
    background = Background(lambda: engine)
    try:
        asked = engine.make_request(Ask("another", DiffusionParams(width=640, height=768, num_inference_steps=1)))
        warm_up(background, "small")
        background.learn(asked, lambda: False)
        assert not engine.foretelling.kinds, "nothing is smaller, and what nobody wants is not drawn"
        warm_up(background, "576x544")
        assert engine.foretelling.takes(asked, 0) > 0
    finally:
        background.close()


def test_no_warm_up_is_not_logged(log: Log) -> None:
    assert works_after(fakes.engine(), "none")
    assert log.records == []


class Full(fakes.Adder):
    """A network that has no memory for the size of the warm-up."""

    def forward(self, rows: Sequence[fakes.AddInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        if any(row.latents.shape == (3, 1, 2) for row in rows):
            raise MemoryError("no room for 8 GiB")
        return super().forward(rows, memories)


def test_a_warm_up_that_fails_is_a_warning_that_says_what_was_tried_and_the_engine_works(log: Log) -> None:
    engine = fakes.engine()
    ctx = engine.runner.pipeline.ctx
    ctx.components = Residency({**ctx.components, "adder": Full()})
    assert works_after(engine, "16x8")
    line = log.records[-1]
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith("warming up with 16x8, 1 step, ") and "no room for 8 GiB" in line.getMessage()
    assert "`--warm-up none` leaves it out" in line.getMessage()


class Unable(fakes.Adder):
    """A network that nothing can be drawn with as the engine was started."""

    def forward(self, rows: Sequence[fakes.AddInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        raise ConfigError("no mask; start with another backend")


def test_a_warm_up_that_fails_by_a_choice_of_the_start_ends_the_start() -> None:
    engine = fakes.engine()
    ctx = engine.runner.pipeline.ctx
    ctx.components = Residency({**ctx.components, "adder": Unable()})
    with pytest.raises(ConfigError, match="no mask; start with another backend"):
        works_after(engine)


def test_a_warm_up_that_takes_too_long_is_stopped_and_logged(log: Log) -> None:
    assert works_after(fakes.engine(), patience=-1.0)
    [line] = log.records
    assert line.levelname == "WARNING" and "was stopped: it took too long" in line.getMessage()
