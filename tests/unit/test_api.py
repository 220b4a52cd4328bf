"""The Python face, over a tiny random checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnimuse import AsyncOmni, Config, DiffusionParams, Done, ModelConfig, Omni, Preview, Progress
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import ConfigError, EngineClosedError, ModelError, RequestCancelled, RequestError
from omnimuse.core.output import Event
from omnimuse.core.request import Ask

SMALL = DiffusionParams(height=32, width=32, num_inference_steps=2, guidance_scale=1.0, seed=1)


@pytest.fixture(scope="module")
def config(z_image_folder: Path) -> Config:
    return Config(ModelConfig(str(z_image_folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def omni(config: Config) -> Iterator[Omni]:
    with Omni(config.model.model, config=config) as made:
        yield made


def test_one_prompt_gives_one_picture(omni: Omni) -> None:
    [result] = omni.generate("a circle", SMALL, progress=False)
    assert result.images[0].size == (32, 32)
    assert result.seeds == [1]
    assert result.output is None
    assert result.params.num_inference_steps == 2
    assert {"queue", "encode prompt", "denoise", "decode"} <= set(result.timings)


def test_output_types_are_pictures_a_unit_tensor_or_latents(omni: Omni) -> None:
    for kind, shape in (("pt", (2, 3, 32, 32)), ("latent", (2, 16, 4, 4))):
        params = replace(SMALL, num_outputs_per_prompt=2, output_type=kind)  # type: ignore[arg-type]
        [result] = omni.generate("a circle", params, progress=False)
        assert tuple(result.output.shape) == shape
        assert result.images == []


def test_many_prompts_come_back_in_order_and_a_wrong_one_is_its_own_error(omni: Omni) -> None:
    prompts = ["one", {"prompt": "two", "negative_prompt": "three"}, {"promt": "typo"}, "four"]
    params = [SMALL, SMALL, SMALL, replace(SMALL, height=33)]
    results = omni.generate(prompts, params, progress=False)
    assert [r.prompt for r in results] == ["one", "two", "", "four"]
    assert [r.error is None for r in results] == [True, True, False, False]
    assert isinstance(results[3].error, RequestError)
    assert "32 or 48" in str(results[3].error)


def test_a_single_wrong_prompt_raises(omni: Omni) -> None:
    with pytest.raises(RequestError, match="height=33"):
        omni.generate("a circle", replace(SMALL, height=33), progress=False)


def test_one_params_object_per_prompt_or_one_for_all(omni: Omni) -> None:
    with pytest.raises(ConfigError, match="2 params for 3 prompts"):
        omni.generate(["a", "b", "c"], [SMALL, SMALL], progress=False)


def test_more_prompts_than_the_queue_holds_all_come_back(config: Config) -> None:
    narrow = replace(config, schedule=ScheduleConfig(max_queue=2, max_running=2))
    with Omni(config.model.model, config=narrow) as omni:
        results = omni.generate([f"prompt {i}" for i in range(7)], SMALL, progress=False)
    assert [r.prompt for r in results] == [f"prompt {i}" for i in range(7)]
    assert all(r.error is None for r in results)


def test_events_reach_the_callers_function(omni: Omni) -> None:
    seen: list[Event] = []
    omni.generate("a circle", replace(SMALL, num_inference_steps=4), progress=seen.append, previews=2)
    assert [e.step for e in seen if isinstance(e, Progress) and e.stage == "denoise"] == [1, 2, 3, 4]
    assert [e.step for e in seen if isinstance(e, Preview)] == [2]
    assert isinstance(seen[-1], Done)


def test_an_interrupted_call_leaves_nothing_running(omni: Omni) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        omni.generate("a circle", SMALL, progress=interrupt)
    [result] = omni.generate("a circle", SMALL, progress=False)
    assert result.error is None
    assert not omni._engine.runner.states


def test_an_engine_says_where_and_in_which_format_it_computes(omni: Omni) -> None:
    assert omni.place == {"dtype": "float32", "device": "cpu"}


def test_an_unknown_model_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ModelError, match="omnimuse models"):
        Omni("shapez")


def test_a_closed_engine_says_so(config: Config) -> None:
    omni = Omni(config.model.model, config=config)
    omni.close()
    omni.close()
    with pytest.raises(EngineClosedError, match="closed"):
        omni.generate("a circle", SMALL, progress=False)


def test_the_async_face_yields_events_and_the_same_picture(config: Config, omni: Omni) -> None:
    [expected] = omni.generate("a circle", replace(SMALL, output_type="pt"), progress=False)

    async def run() -> list[Event]:
        async with AsyncOmni(config.model.model, config=config) as subject:
            params = replace(SMALL, output_type="pt")
            return [event async for event in subject.generate("a circle", params, previews=1)]

    events = asyncio.run(run())
    assert isinstance(events[-1], Done)
    assert torch.equal(events[-1].result.output, expected.output)
    assert any(isinstance(event, Preview) for event in events)


def test_leaving_the_async_iterator_cancels_the_request(config: Config) -> None:
    async def run() -> tuple[int, bool]:
        async with AsyncOmni(config.model.model, config=config) as subject:
            stream = subject.generate("a circle", replace(SMALL, num_inference_steps=5000))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            events = [event async for event in subject.generate("next", SMALL)]
            return len(subject._background.engine.runner.jobs), isinstance(events[-1], Done)

    assert asyncio.run(run()) == (0, True)


def test_a_timeout_ends_an_async_request(config: Config) -> None:
    async def run() -> None:
        async with AsyncOmni(config.model.model, config=config) as subject:
            params = replace(SMALL, num_inference_steps=9000)
            async for _ in subject.generate("slow", params, ask=Ask("slow", timeout=0.2)):
                pass

    with pytest.raises(RequestCancelled, match="deadline"):
        asyncio.run(run())
