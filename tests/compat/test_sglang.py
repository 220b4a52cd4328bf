"""Pipelines that are composed as SGLang Diffusion's guide has it: each stage is one of ours, and the loop is ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse import Config, ModelConfig, Omni
from omnimuse.compat.composed.spec import PIPELINE
from omnimuse.compat.composed.stages import pipeline_of
from omnimuse.compat.sglang import DiffGenerator
from omnimuse.compat.sglang.runtime.entrypoints.options import config_of
from omnimuse.core.config import (
    AttentionConfig,
    CacheConfig,
    CompileConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.server.translate.answers import Made
from omnimuse.worker.build import build as build_engine
from omnimuse.worker.find import find
from tests.checkpoints.flux import FAMILIES, build
from tests.checkpoints.wishes import Wish, of_picture
from tests.compat.checkpoints import COMPOSED, renamed
from tests.compat.running import refusal
from tests.invariants.conftest import drain

FAMILY = FAMILIES[0]
WISHES = (
    Wish("a red circle", None, of_picture(4, 3.5, 64, 64, 7)),
    Wish("two squares", "blurry, grey", replace(of_picture(3, 2.0, 96, 64, 8), true_cfg_scale=3.0)),
    Wish("a star", "", replace(of_picture(5, 5.0, 32, 48, 9), true_cfg_scale=1.5)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("composed") / "tiny")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[torch.Tensor]:
    wishes = [replace(each, params=replace(each.params, max_sequence_length=24)) for each in WISHES]
    return FAMILY.reference(renamed(folder, "FluxPipeline"), wishes, "pt")


@pytest.fixture(scope="module")
def engine(folder: Path, expected: list[torch.Tensor]) -> Iterator[Engine]:
    model = ModelConfig(str(renamed(folder, "ComposedSmallPipeline")), "float32", "cpu", plugins=(COMPOSED,))
    made = start(Config(model, schedule=ScheduleConfig(strict_slots=True, company="always")))
    yield made
    made.close()


def submit(engine: Engine, wish: Wish) -> str:
    return engine.submit(engine.make_request(Ask(wish.asked, replace(wish.params, output_type="pt"))))


def pictures(events: list[Event]) -> dict[str, torch.Tensor]:
    assert not [event for event in events if isinstance(event, Failed)]
    return {event.request_id: event.result.tensors["image"][0] for event in events if isinstance(event, Done)}


def test_alone_and_in_company_it_draws_what_diffusers_draws(engine: Engine, expected: list[torch.Tensor]) -> None:
    for wish, picture in zip(WISHES, expected, strict=True):
        submit(engine, wish)
        [alone] = pictures(drain(engine)).values()
        torch.testing.assert_close(alone, picture, atol=1e-5, rtol=0, msg=wish.prompt)
    places = [submit(engine, wish) for wish in WISHES]
    found = pictures(drain(engine))
    for place, picture in zip(places, expected, strict=True):
        torch.testing.assert_close(found[place], picture, atol=1e-5, rtol=0)
    assert not engine.runner.forwards.retries


def test_outputs_of_one_size_share_every_call_of_the_network(engine: Engine, expected: list[torch.Tensor]) -> None:
    assert "one step cache goes around the blocks" in refusal(engine, WISHES[0], cache="none")
    before = engine.runner.forwards.count
    places = [submit(engine, replace(WISHES[0], params=replace(WISHES[0].params, seed=seed))) for seed in (7, 1, 2)]
    found = pictures(drain(engine))
    torch.testing.assert_close(found[places[0]], expected[0], atol=1e-5, rtol=0)
    assert engine.runner.forwards.count - before == WISHES[0].params.num_inference_steps


def test_its_stages_are_told_one_by_one_and_every_step_of_its_loop(
    engine: Engine, expected: list[torch.Tensor]
) -> None:
    params = replace(WISHES[0].params, output_type="pt")
    engine.submit(engine.make_request(Ask(WISHES[0].asked, params, previews=1, blocks=True)))
    events = drain(engine)
    [done] = [event for event in events if isinstance(event, Done)]
    labels = {"prompt_encoding_stage_primary": "text_encoder.forward", "decoding_stage": "vae.decode"}
    assert done.result.labels == labels, "by their classes, as names may be any"
    assert {len(runs) for name, runs in done.result.blocks.items() if ".transformer_blocks." in name} == {4}
    stages = [
        *("input_validation_stage", "prompt_encoding_stage_primary", "conditioning_stage"),
        *("timestep_preparation_stage", "latent_preparation_stage", "denoise", "decoding_stage"),
    ]
    assert [name for name in done.result.timings if name in stages] == stages
    steps = [event.step for event in events if isinstance(event, Progress) and event.stage == "denoise"]
    assert steps == [1, 2, 3, 4]
    assert [event.image.shape for event in events if isinstance(event, Preview)] == [(64, 64, 3)] * 3
    torch.testing.assert_close(done.result.tensors["image"][0], expected[0], atol=1e-5, rtol=0)


def test_its_stages_are_told_beside_ours_whatever_they_are_called(engine: Engine) -> None:
    live = engine.runner.pipeline.ctx.components[PIPELINE]
    names = ("queue", "encode prompt", "encode", "denoise", "encode_prompt", "denoising_stage", "stage queue")
    called = dict(zip(names, live.stages.values(), strict=True))
    made = pipeline_of(engine.door.spec, replace(live, stages=called))
    found = [stage.name for stage in made.stages]
    assert found == [
        *("stage queue", "encode prompt", "stage encode", "stage denoise", "stage encode_prompt", "denoise"),
        "stage stage queue",
    ]
    timings = {"queue": 8.0, **dict.fromkeys(found, 1.0), "encode": 8.0}
    told = Made([], timings)
    assert len(told.seconds) == 9 and told.work_seconds == 7.0, "neither waiting nor writing files"


def test_cancelled_or_paused_between_steps_it_leaves_the_others_as_they_were(
    engine: Engine, expected: list[torch.Tensor]
) -> None:
    gone, kept = submit(engine, WISHES[0]), submit(engine, WISHES[1])
    while not any(isinstance(event, Progress) and event.stage == "denoise" for event in engine.tick()):
        pass
    engine.cancel(gone)
    engine.pause(kept)
    events = engine.tick()
    engine.resume(kept)
    events += drain(engine)
    found = pictures([event for event in events if event.request_id != gone])
    assert set(found) == {kept}
    torch.testing.assert_close(found[kept], expected[1], atol=1e-5, rtol=0)


def test_a_script_of_the_guide_draws_the_same(folder: Path, expected: list[torch.Tensor], tmp_path: Path) -> None:
    path = str(renamed(folder, "ComposedSmallPipeline"))
    options = {"dit_precision": "fp32", "device": "cpu", "num_gpus": 1}
    with DiffGenerator.from_pretrained(model_path=path, plugin=COMPOSED, **options) as generator:
        wish = WISHES[1]
        made = generator.generate(
            sampling_params_kwargs={
                "prompt": wish.prompt,
                "negative_prompt": wish.negative,
                "num_inference_steps": 3,
                "guidance_scale": 2.0,
                "true_cfg_scale": 3.0,
                "height": 96,
                "width": 64,
                "seed": 8,
                "output_path": str(tmp_path),
            }
        )
        torch.testing.assert_close(made["samples"][:, 0], expected[1], atol=1e-5, rtol=0)
        assert (Path(made["output_file_path"]).name, made["size"]) == ("two_squares.png", (96, 64, 1))
        frames = generator.generate(
            "a star", return_frames=True, save_output=False, num_inference_steps=1, height=32, width=32
        )
        assert [frame.shape for frame in frames] == [(32, 32, 3)]
    assert [file.name for file in tmp_path.iterdir()] == ["two_squares.png"]


def test_omni_draws_the_same_with_the_defaults_of_the_pipeline(folder: Path, expected: list[torch.Tensor]) -> None:
    path = str(renamed(folder, "ComposedSmallPipeline"))
    with Omni(path, plugin=COMPOSED, dtype="float32", device="cpu") as omni:
        defaults = omni.engine.door.defaults
        assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.height) == (28, 3.5, 128)
        params = DiffusionParams(num_inference_steps=4, height=64, width=64, seed=7, output_type="pt")
        [result] = omni.generate("a red circle", params, progress=False)
        torch.testing.assert_close(result.tensors["image"][0], expected[0], atol=1e-5, rtol=0)


def test_blocks_come_one_at_a_time_where_the_network_says_what_they_are(
    folder: Path, expected: list[torch.Tensor]
) -> None:
    path = str(renamed(folder, "ComposedSmallPipeline"))
    options = {"dit_precision": "fp32", "device": "cpu", "dit_layerwise_offload": True}
    with DiffGenerator.from_pretrained(model_path=path, plugin=COMPOSED, **options) as generator:
        small = {"num_inference_steps": 4, "height": 64, "width": 64, "seed": 7, "save_output": False}
        made = generator.generate("a red circle", **small)
    torch.testing.assert_close(made["samples"][:, 0], expected[0], atol=1e-5, rtol=0)


def drawn_with(folder: Path, wish: Wish, **parts: Any) -> torch.Tensor:
    model = ModelConfig(str(renamed(folder, "ComposedSmallPipeline")), "float32", "cpu", plugins=(COMPOSED,))
    engine = start(Config(model, **parts))
    try:
        submit(engine, wish)
        [picture] = pictures(drain(engine)).values()
    finally:
        engine.close()
    return picture


def test_a_step_cache_goes_around_its_blocks(folder: Path, expected: list[torch.Tensor]) -> None:
    always = CacheConfig("dbcache", 1e9, first=1, last=0, warm_up=1)
    torch.testing.assert_close(
        drawn_with(folder, WISHES[1], cache=replace(always, threshold=0.0)), expected[1], atol=1e-5, rtol=0
    )
    assert (drawn_with(folder, WISHES[0], cache=always) - expected[0]).abs().max() > 1e-4


def test_teacache_watches_what_an_extractor_says(folder: Path, expected: list[torch.Tensor]) -> None:
    never = drawn_with(folder, WISHES[1], cache=CacheConfig("teacache", 0.0))
    torch.testing.assert_close(never, expected[1], atol=1e-5, rtol=0)
    often = drawn_with(folder, WISHES[0], cache=CacheConfig("teacache", 1e9))
    assert (often - expected[0]).abs().max() > 1e-4
    away = drawn_with(folder, WISHES[0], cache=CacheConfig("teacache", 1e9), offload=OffloadConfig("layers"))
    torch.testing.assert_close(away, often, atol=1e-5, rtol=0)


def test_parts_take_turns_on_the_device(folder: Path, expected: list[torch.Tensor]) -> None:
    path = str(renamed(folder, "ComposedSmallPipeline"))
    asked = {"model_path": path, "plugin": COMPOSED, "dit_precision": "fp32", "device": "cpu", "dit_cpu_offload": True}
    engine = start(config_of(asked))
    try:
        submit(engine, WISHES[0])
        [picture] = pictures(drain(engine)).values()
        parts = engine.runner.pipeline.ctx.components
        there = {name for name in ("transformer", "vae", "text_encoder") if not next(parts[name].parameters()).is_meta}
    finally:
        engine.close()
    torch.testing.assert_close(picture, expected[0], atol=1e-5, rtol=0)
    assert there == {"vae"}


def test_weights_in_fewer_bits_draw_nearly_the_same(folder: Path, expected: list[torch.Tensor]) -> None:
    found = drawn_with(folder, WISHES[0], quantize=QuantConfig({"": "int8"}))
    assert 1e-5 < (found - expected[0]).abs().max() < 0.1


def test_an_attention_backend_is_chosen_by_a_role_that_one_of_its_components_has(
    folder: Path, expected: list[torch.Tensor]
) -> None:
    chosen = AttentionConfig(per_role={"self": "reference"})
    torch.testing.assert_close(drawn_with(folder, WISHES[0], attention=chosen), expected[0], atol=1e-5, rtol=0)
    model = ModelConfig(str(renamed(folder, "ComposedSmallPipeline")), "float32", "cpu", plugins=(COMPOSED,))
    built = build_engine(Config(model, attention=chosen))
    built.resources.close()
    found = {each.name.partition(",")[0]: each.value for each in built.choices if each.topic == "attention"}
    assert found == {"transformer of pipeline": "reference"}
    with pytest.raises(ConfigError, match=r"no attention role or category 'slef'; did you mean 'self'"):
        build_engine(Config(model, attention=AttentionConfig(per_role={"slef": "reference"})))


def test_what_is_not_translated_is_refused_when_the_engine_starts(folder: Path) -> None:
    path = str(renamed(folder, "ComposedSmallPipeline"))
    model = ModelConfig(path, "float32", "cpu", plugins=(COMPOSED,))
    for parts, why in (
        ({"parallel": ParallelConfig(pipe=2)}, "use tensor, cfg, ulysses or ring"),
        ({"cache": CacheConfig("dbcache"), "parallel": ParallelConfig(ulysses=2)}, "by its own tokens"),
        ({"compile": CompileConfig("blocks"), "parallel": ParallelConfig(tensor=2)}, "have not been tried"),
    ):
        with pytest.raises(ConfigError, match=why):
            find(Config(model, **parts))  # type: ignore[arg-type]
