"""The Python face, over a tiny random checkpoint."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from omnimuse import AsyncOmni, Config, DiffusionParams, Done, ModelConfig, Omni, Preview, Progress, Result
from omnimuse.api import configure, explain, warm
from omnimuse.core.config import CacheConfig, QuantConfig, ScheduleConfig
from omnimuse.core.errors import (
    CapacityError,
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    ModelError,
    NumericalError,
    RequestCancelled,
    RequestError,
)
from omnimuse.core.output import Chunk, Event
from omnimuse.core.params import Choices, GenerationParams, SpeechParams, WatchParams
from omnimuse.core.request import Ask
from omnimuse.observe.profile import recorded
from tests.checkpoints import calling

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


def test_a_recording_names_the_stages_of_what_was_drawn_in_it(omni: Omni, tmp_path: Path) -> None:
    with omni.recording(str(tmp_path / "trace.json.gz")):
        omni.generate("a circle that was never drawn before", SMALL, progress=False)
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    stages = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {"step 1 of 2", "step 2 of 2", "transformer.layers.0"} <= set(stages)
    assert any(event["ph"] == "C" and event["args"]["allocated bytes"] > 0 for event in events), "a line of memory"
    assert stages.count("diffuse") == 2 and {"text_encoder.forward", "vae.decode"} <= set(stages)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json.gz"]


def test_a_recording_is_refused_before_it_begins_where_it_cannot_be_written(omni: Omni, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, said in (("trace.json", "use one of .gz"), ("file/trace.json.gz", "is a file, not a folder")):
        with pytest.raises(RequestError, match=said), omni.recording(tmp_path / name):
            pytest.fail("it began")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_recording_within_another_is_refused_and_the_outer_one_goes_on(omni: Omni, tmp_path: Path) -> None:
    with omni.recording(tmp_path / "outer.json.gz"):
        with pytest.raises(CapacityError, match="recorded already"), omni.recording(tmp_path / "inner.json.gz"):
            pytest.fail("it began")
        omni.generate("a circle", SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["outer.json.gz"]


def test_who_is_interrupted_while_a_recording_begins_leaves_none(
    omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-C, in the seconds that it takes."""
    between_ticks = omni._background.between_ticks

    class Interrupted(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            raise KeyboardInterrupt

    def interrupt(work: Callable[[], Any]) -> Future[Any]:
        begun = between_ticks(work)
        return Interrupted() if work == omni.engine.recordings.begin else begun

    with monkeypatch.context() as patched:
        patched.setattr(omni._background, "between_ticks", interrupt)
        with pytest.raises(KeyboardInterrupt), omni.recording(tmp_path / "trace.json.gz"):
            pytest.fail("it began")
    assert not between_ticks(recorded).result() and not omni.engine.runner.blocks.recorded
    with omni.recording(tmp_path / "next.json.gz"):
        omni.generate("a circle", SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["next.json.gz"]


def test_why_an_engine_ended_while_a_recording_began_is_told(
    omni: Omni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(work: Callable[[], Any]) -> Future[Any]:
        if work != omni.engine.recordings.begin:
            raise EngineClosedError("this engine is closed; make a new one")
        begun = Future[Any]()
        begun.set_exception(EngineDeadError("a rank is gone"))
        return begun

    with monkeypatch.context() as patched:
        patched.setattr(omni._background, "between_ticks", ended)
        with pytest.raises(EngineDeadError, match="a rank is gone"), omni.recording(tmp_path / "trace.json.gz"):
            pytest.fail("it began")


def test_a_model_that_slept_draws_what_it_drew(omni: Omni) -> None:
    [before] = omni.generate("a circle", SMALL, progress=False)
    assert omni.sleep() > 0 and omni.engine.asleep
    omni.wake_up()
    [after] = omni.generate("a circle", SMALL, progress=False)
    assert before.images[0].tobytes() == after.images[0].tobytes()


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


def truncated(tmp_path: Path) -> Image.Image:
    """A picture that Pillow opens, and cannot read to its end."""
    file = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).convert("RGB").save(file)
    file.write_bytes(file.read_bytes()[:2000])
    return Image.open(file)


def test_nonsense_among_prompts_is_its_own_error_and_the_others_come_back(omni: Omni, tmp_path: Path) -> None:
    with truncated(tmp_path) as half:
        prompts: list[Any] = [123, None, "a cat", {"prompt": "x", "images": [half]}, {"prompt": 5}]
        results = omni.generate(prompts, SMALL, progress=False)
    assert [isinstance(r.error, RequestError) for r in results] == [True, True, False, True, True]
    assert "cannot read" in str(results[3].error)
    assert results[2].images


@pytest.mark.parametrize("prompt", [None, 3, b"a cat"])
def test_a_single_prompt_of_another_kind_is_refused_as_one(omni: Omni, prompt: Any) -> None:
    with pytest.raises(RequestError, match=f"a prompt is a string or a dict, got {type(prompt).__name__}"):
        omni.generate(prompt, SMALL, progress=False)


def test_a_single_prompt_is_one_in_a_stream_and_not_one_for_each_letter(omni: Omni) -> None:
    assert [(place, result.prompt) for place, result in omni.stream("a cat", SMALL)] == [(0, "a cat")]


def test_results_come_as_they_are_done(omni: Omni) -> None:
    params = [replace(SMALL, num_inference_steps=steps) for steps in (9, 2, 5)]
    assert [place for place, _ in omni.stream(["a", "b", "c"], params)] == [1, 2, 0]


def test_leaving_a_stream_early_cancels_the_rest(omni: Omni) -> None:
    stream = omni.stream(["a", "b"], [SMALL, replace(SMALL, num_inference_steps=9000)])
    assert next(stream)[0] == 0
    stream.close()  # type: ignore[attr-defined]
    omni.generate("next", SMALL, progress=False)
    assert not omni.engine.runner.states


def test_parameters_may_be_keywords_or_a_dict(omni: Omni) -> None:
    plain = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 1.0}
    [expected] = omni.generate("a circle", replace(SMALL, output_type="pt"), progress=False)
    [found] = omni.generate("a circle", plain, seed=1, output_type="pt", progress=False)
    assert torch.equal(found.output, expected.output)
    with pytest.raises(RequestError, match="did you mean 'seed'"):
        omni.generate("a circle", {"sed": 1}, progress=False)


def test_sizes_become_legal_ones_where_that_was_asked_for_and_each_result_says_so(omni: Omni) -> None:
    params = [SMALL, replace(SMALL, width=39, height=20), replace(SMALL, guidance_scale=-1.0, width=39)]
    fits, near, wrong = omni.generate(["a", "b", "c"], params, adjust=True, progress=False)
    assert (fits.images[0].size, fits.warnings) == ((32, 32), [])
    assert (near.images[0].size, near.params.width, near.params.height) == ((32, 16), 32, 16)
    assert near.warnings == [
        "width=39 became 32, the nearest that this model makes",
        "height=20 became 16, the nearest that this model makes",
    ]
    assert isinstance(wrong.error, RequestError) and wrong.error.param == "guidance_scale"
    with pytest.raises(RequestError, match="use 32 or 48"):
        omni.generate("b", SMALL, width=39, progress=False)


def test_the_keywords_are_the_fields_of_the_parameters() -> None:
    fields_ = {
        field.name: field.type
        for kind in (DiffusionParams, GenerationParams, SpeechParams, WatchParams)
        for field in fields(kind)
    }
    assert {name: hint.__forward_arg__ for name, hint in Choices.__annotations__.items()} == fields_


def test_threads_share_one_engine(omni: Omni) -> None:
    alone = [omni.generate("a circle", SMALL, seed=seed, output_type="pt", progress=False)[0] for seed in range(8)]
    found: dict[int, Result] = {}

    def draw(seed: int) -> None:
        [found[seed]] = omni.generate("a circle", SMALL, seed=seed, output_type="pt", progress=False)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    for seed, result in enumerate(alone):
        assert torch.allclose(found[seed].output, result.output, atol=1e-4)


def test_values_that_are_not_numbers_are_an_error_and_no_black_picture(omni: Omni) -> None:
    vae = omni.engine.runner.pipeline.ctx.components["vae"]
    weight = next(vae.decoder.parameters())
    kept = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(NumericalError, match="not finite numbers"):
            omni.generate("a circle", SMALL, progress=False)
    finally:
        weight.copy_(kept)
    assert omni.generate("a circle", SMALL, progress=False)[0].images


def test_an_engine_that_nobody_holds_any_more_is_closed(config: Config) -> None:
    omni = Omni(config.model.model, config=config)
    engine = omni.engine
    del omni
    gc.collect()
    with pytest.raises(EngineClosedError):
        engine.tick()


def test_a_single_wrong_prompt_raises(omni: Omni) -> None:
    with pytest.raises(RequestError, match="height=33"):
        omni.generate("a circle", replace(SMALL, height=33), progress=False)


@pytest.mark.parametrize(("topic", "kind"), [("parallel", "ParallelConfig"), ("decode", "DecodeConfig")])
def test_a_setting_of_another_kind_is_refused_by_its_name(topic: str, kind: str) -> None:
    wrong: dict[str, Any] = {topic: {"ulysses": 2}}
    with pytest.raises(ConfigError, match=f"{topic}=.*'ulysses': 2.* is no {kind}; write {kind}"):
        Config(ModelConfig("omnimuse/shapes"), **wrong)
    if topic == "parallel":
        with pytest.raises(ConfigError, match="is no ParallelConfig"):
            Omni("omnimuse/shapes", **wrong)


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
    assert not omni.engine.runner.states


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


def test_the_async_face_has_tools_asked_for_and_takes_their_calls_out_of_the_text(tmp_path: Path) -> None:
    async def run() -> Event:
        async with AsyncOmni(str(calling.build(tmp_path / "tiny")), dtype="float32", device="cpu") as subject:
            said = [{"role": "user", "content": "a heron?"}]
            return [event async for event in subject.generate(said, tools=[calling.LOOK])][-1]

    last = asyncio.run(run())
    assert isinstance(last, Done)
    assert (last.result.text, [call.name for call in last.result.calls[0]]) == ("Let me see.", ["look_up", "count"])


def test_the_async_face_finishes_results_beside_the_event_loop(config: Config) -> None:
    """A video takes seconds, for which the loop would do nothing else."""
    finished_by: list[threading.Thread] = []

    class Noted(AsyncOmni):
        def _presented(self, event: Done, *rest: Any) -> Done:
            finished_by.append(threading.current_thread())
            return super()._presented(event, *rest)

    async def run() -> Event:
        async with Noted(config.model.model, config=config) as subject:
            return [event async for event in subject.generate("a circle", SMALL)][-1]

    assert asyncio.run(run()).result.images  # type: ignore[union-attr]
    assert len(finished_by) == 1 and finished_by[0] is not threading.main_thread()


def test_the_async_face_adjusts_what_an_ask_and_keywords_say_together(config: Config) -> None:
    async def draw(adjust: bool) -> Result:
        async with AsyncOmni(config.model.model, config=config) as engine:
            ask = Ask("", replace(SMALL, height=20))
            async for event in engine.generate("a circle", ask=ask, width=39, adjust=adjust):
                if isinstance(event, Done):
                    return event.result
        raise AssertionError("the events ended without the result")

    result = asyncio.run(draw(adjust=True))
    assert result.images[0].size == (32, 16)
    assert [told.split(" ")[0] for told in result.warnings] == ["width=39", "height=20"]
    with pytest.raises(RequestError, match="use 16 or 32"):
        asyncio.run(draw(adjust=False))


def test_the_async_face_times_blocks_records_sleeps_and_wakes(config: Config, tmp_path: Path) -> None:
    async def drawn(subject: AsyncOmni) -> Result:
        async for event in subject.generate("a circle", SMALL):
            if isinstance(event, Done):
                return event.result
        raise AssertionError("the events ended without the result")

    async def run() -> tuple[Result, Result, int]:
        async with AsyncOmni(config.model.model, config=config) as subject:
            plain, subject.times_blocks = await drawn(subject), True
            async with subject.recording(tmp_path / "trace.json.gz"):
                with pytest.raises(CapacityError, match="recorded already"):
                    async with subject.recording(tmp_path / "inner.json.gz"):
                        pytest.fail("it began")
                told = await drawn(subject)
            asleep = await subject.sleep()
            waiting = asyncio.create_task(drawn(subject))
            await asyncio.sleep(0.2)
            assert not waiting.done() and subject.place["device"] == "cpu"
            await subject.wake_up()
            assert (await waiting).blocks
            begins = asyncio.create_task(subject.recording(tmp_path / "left.json.gz").__aenter__())
            await asyncio.sleep(0)
            begins.cancel()  # while it begins
            await asyncio.wait([begins])
            async with subject.recording(tmp_path / "next.json.gz"):
                pass
            return plain, told, asleep

    plain, told, asleep = asyncio.run(run())
    assert not plain.blocks and told.blocks["transformer.layers.0"] and asleep > 0
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {"step 1 of 2", "transformer.layers.0"} <= {event["name"] for event in events}
    assert (tmp_path / "next.json.gz").exists()


def test_leaving_the_async_iterator_cancels_the_request(config: Config) -> None:
    async def run() -> tuple[int, bool]:
        async with AsyncOmni(config.model.model, config=config) as subject:
            stream = subject.generate("a circle", replace(SMALL, num_inference_steps=5000))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            events = [event async for event in subject.generate("next", SMALL)]
            return len(subject._background.engine.runner.jobs), isinstance(events[-1], Done)

    assert asyncio.run(run()) == (0, True)


def test_what_an_ask_says_holds_unless_it_is_said_beside_it(config: Config) -> None:
    async def run() -> tuple[list[Event], list[Event]]:
        async with AsyncOmni(config.model.model, config=config) as subject:
            asked = Ask("", replace(SMALL, num_inference_steps=4), previews=1)
            as_asked = [event async for event in subject.generate("a", ask=asked)]
            beside = [event async for event in subject.generate("a", ask=asked, previews=0, num_inference_steps=3)]
            return as_asked, beside

    as_asked, beside = asyncio.run(run())
    assert [e.step for e in as_asked if isinstance(e, Preview)] == [1, 2, 3]
    assert not [e for e in beside if isinstance(e, Preview)]
    assert [e.step for e in beside if isinstance(e, Progress) and e.stage == "denoise"] == [1, 2, 3]


def test_an_async_answer_comes_in_pieces_and_by_a_deadline(tmp_path: Path) -> None:
    async def run() -> tuple[list[Event], list[Event]]:
        async with AsyncOmni(str(calling.build(tmp_path / "tiny")), dtype="float32", device="cpu") as subject:
            said: Any = [{"role": "user", "content": "a heron?"}]
            told = [event async for event in subject.generate(said, chunks=True, temperature=0, max_tokens=6)]
            whole = [
                event async for event in subject.generate(said, ask=Ask("", chunks=True), chunks=False, max_tokens=6)
            ]
            with pytest.raises(RequestError, match="deadline='soon' is not known"):
                await anext(subject.generate(said, deadline="soon"))
            return told, whole

    told, whole = asyncio.run(run())
    done = told[-1]
    assert isinstance(done, Done)
    assert "".join(event.data for event in told if isinstance(event, Chunk)) == done.result.text
    assert not [event for event in whole if isinstance(event, Chunk)]


def test_an_event_loop_that_closes_in_the_midst_of_a_request_harms_nobody_else(config: Config) -> None:
    subject = AsyncOmni(config.model.model, config=config)

    async def begin() -> AsyncIterator[Event]:
        stream = subject.generate("slow", replace(SMALL, num_inference_steps=9000))
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    kept = loop.run_until_complete(begin())
    loop.close()  # without a chance to cancel anything

    async def draw() -> list[Event]:
        return [event async for event in subject.generate("a circle", SMALL)]

    assert isinstance(asyncio.run(draw())[-1], Done)
    assert kept is not None
    asyncio.run(subject.close())


def test_a_timeout_ends_an_async_request(config: Config) -> None:
    async def run() -> None:
        async with AsyncOmni(config.model.model, config=config) as subject:
            params = replace(SMALL, num_inference_steps=9000)
            async for _ in subject.generate("slow", params, ask=Ask("slow", timeout=0.2)):
                pass

    with pytest.raises(RequestCancelled, match="deadline"):
        asyncio.run(run())


def test_what_an_engine_cannot_be_given_is_refused_with_what_it_can() -> None:
    with pytest.raises(TypeError, match="dtyp cannot be chosen here; use config, dtype"):
        configure("omnimuse/shapes", None, {"dtyp": "float32"})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("short", "said"),
    [
        ({"quantize": 8}, "quantize=8 is not allowed; use a text or None"),
        ({"cache": 0.2}, "cache=0.2 is not allowed; use a text or None"),
        ({"cache": "fst"}, "cache='fst' is not known; did you mean 'fast'"),
        ({"plugin": [3]}, r"plugin=\[3\] is not allowed; use a text or a list of texts or None"),
        ({"deploy": 3}, "deploy=3 is not allowed; use a text or a pathlib.Path or None"),
        ({"parallel": 2}, "parallel=2 is no ParallelConfig; write ParallelConfig"),
        ({"writer": "vllm"}, "writer='vllm' is no WriterConfig; write WriterConfig"),
    ],
)
def test_a_short_choice_of_another_kind_is_refused_by_its_name(short: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure("omnimuse/shapes", None, short)


def test_a_configuration_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"config=\{'dtype': 'float32'\} is not allowed; use Config or None"):
        configure("omnimuse/shapes", {"dtype": "float32"}, {})  # type: ignore[arg-type]


def test_a_model_may_be_named_by_a_path() -> None:
    assert configure(Path("models/m"), None, {}) == configure("models/m", None, {})
    with pytest.raises(ModelError, match="models/m"):
        explain(Path("models/m"))


def test_what_is_warmed_is_the_model_that_is_named_whatever_the_configuration_is_of() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        warm("./nowhere", config=Config(ModelConfig("omnimuse/shapes")))


def test_short_choices_that_are_none_leave_what_there_is() -> None:
    base = Config(ModelConfig("m", device="cpu", plugins=("mine",)))
    assert configure("m", base, {"plugin": None, "quantize": None, "device": None}) == base  # type: ignore[typeddict-item]


def test_short_choices_go_into_the_configuration_and_leave_the_rest() -> None:
    base = Config(ModelConfig("other", device="cpu"), quantize=QuantConfig.of("int8", "blocks.0"))
    assert configure("omnimuse/shapes", base, {"dtype": "float32"}).quantize == base.quantize
    found = configure("omnimuse/shapes", base, {"quantize": "transformer=int8-dynamic"})
    assert found.quantize.schemes == {"transformer": "int8-dynamic"}
    assert found.model == ModelConfig("omnimuse/shapes", device="cpu")


def test_a_step_cache_is_a_short_choice_which_requests_may_replace() -> None:
    assert configure("m", None, {"cache": "dbcache,first=2"}).cache == CacheConfig("dbcache", first=2)
    base = Config(ModelConfig("m"), cache=CacheConfig("fast"))
    assert configure("m", base, {"cache": None}).cache == base.cache
    assert configure("m", base, {"cache": "none"}).cache.off
    with Omni("omnimuse/shapes", cache="fast") as subject:
        usual, own, none = (
            subject.generate("a red circle", seed=7, num_inference_steps=8, progress=False, **said)[0].images[0]
            for said in ({}, {"cache": "fast"}, {"cache": "none"})
        )
    assert usual == own != none


def test_a_deploy_file_and_what_lies_over_it_are_short_choices(tmp_path: Path) -> None:
    deploy, strategy = tmp_path / "deploy.yaml", tmp_path / "strategy.yaml"
    deploy.write_text("stages: [{stage_id: 0, devices: cpu}, {stage_id: 1, devices: cpu}]")
    strategy.write_text("strategies: {dit: [{axis: stage_replica, size: 2}]}")
    found = configure("m", None, {"deploy": deploy, "strategy": str(strategy)})
    assert [pool.replicas for pool in found.deploy.pools] == [1, 2]
    with pytest.raises(ConfigError, match=r"strategy='.*' lies over a deploy file; name that as `deploy`"):
        configure("m", None, {"strategy": strategy})
