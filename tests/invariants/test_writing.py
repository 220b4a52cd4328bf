"""The promises of the house for models that write, with tiny random weights: tokens are equal, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from omnimuse.ar.kv import KV, Decoder, Slabs
from omnimuse.core.config import (
    CacheConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError, NumericalError, RequestError
from omnimuse.core.output import Chunk, Done, Event, Failed, Progress, Result
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.generate import CHUNK, Generate
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.explain import explain
from tests.checkpoints.adapters import layers_telling, merged, peft, write
from tests.checkpoints.families import WRITERS
from tests.checkpoints.wishes import Writer
from tests.invariants.conftest import config, drain, results, spoil, submit, tick, told, with_params
from tests.turns import in_turns


@pytest.fixture(scope="module", params=in_turns(WRITERS, "Qwen3ForCausalLM", lambda writer: writer.name))
def writer(request: pytest.FixtureRequest) -> Writer:
    found: Writer = request.param
    return found


@pytest.fixture(scope="module")
def teller(writer: Writer) -> Writer:
    """Whose folder and engine there are."""
    return writer


def ask(writer: Writer, index: int, seed: int = 7, **choices: Any) -> Ask:
    prompt = writer.prompts[index % len(writer.prompts)]
    given = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    wanted = dict(writer.choices[index % len(writer.choices)]) | choices
    return Ask(given, make_params(DiffusionParams(seed=seed + index), wanted), chunks=True)


def run(engine: Engine, *asks: Ask) -> list[Result]:
    """All asks in flight together."""
    ids = submit(engine, *asks)
    return results(engine, drain(engine), ids)


def tokens(result: Result) -> tuple[int, ...]:
    [written] = result.written
    return written.tokens


@pytest.mark.shows("text out", "company")
def test_what_is_written_in_company_is_what_the_reference_writes_alone(
    writer: Writer, folder: Path, engine: Engine
) -> None:
    count = max(len(writer.prompts), len(writer.choices))
    pairs = [(index, index) for index in range(count)] + [(index, 0) for index in range(1, len(writer.prompts))]
    asks = [ask(writer, prompt, **writer.choices[choice % len(writer.choices)]) for prompt, choice in pairs]
    for (prompt, choice), found in zip(pairs, run(engine, *asks), strict=True):
        own = dict(writer.choices[prompt % len(writer.choices)]) | dict(writer.choices[choice % len(writer.choices)])
        expected = writer.reference(folder, writer.prompts[prompt % len(writer.prompts)], 7 + prompt, own)
        assert list(tokens(found)) == expected
    assert any(result.prompt_tokens > CHUNK for result in run(engine, *asks)), "one must be read in several steps"


def test_tokens_by_their_numbers_are_read_as_their_text_is(writer: Writer, engine: Engine) -> None:
    [id_] = submit(engine, ask(writer, 1))
    while not (states := [state for state in engine.runner.states.values() if "prompt_ids" in state]):
        tick(engine)
    ids = states[0]["prompt_ids"]
    [expected] = results(engine, drain(engine), [id_])
    [found] = run(engine, replace(ask(writer, 1), prompt={"tokens": ids}))
    assert (tokens(found), found.prompt_tokens) == (tokens(expected), len(ids))
    submit(engine, Ask({"tokens": [1, 10**6]}))
    [failed] = [event for event in drain(engine) if isinstance(event, Failed)]
    assert "1000000 stands for no token; this model has 0 to" in str(failed.error)


def test_pausing_on_the_cpu_and_resuming_changes_nothing(writer: Writer, engine: Engine) -> None:
    [expected] = run(engine, ask(writer, 2))
    [id_] = submit(engine, ask(writer, 2))
    for _ in range(5):
        engine.tick()
    engine.pause(id_)
    engine.tick()
    assert engine.idle, "it is parked"
    engine.resume(id_)
    assert tokens(results(engine, drain(engine), [id_])[0]) == tokens(expected)


def test_one_that_is_cancelled_is_gone_and_the_others_are_unchanged(writer: Writer, engine: Engine) -> None:
    expected = run(engine, ask(writer, 0), ask(writer, 2))
    first, gone, last = submit(engine, ask(writer, 0), ask(writer, 1), ask(writer, 2))
    for _ in range(4):
        engine.tick()
    engine.cancel(gone)
    found = results(engine, drain(engine), [first, last])
    assert [tokens(each) for each in found] == [tokens(each) for each in expected]
    assert not engine.runner.states


def test_who_writes_and_who_reads_a_long_prompt_wait_for_no_more_than_a_piece_of_it(
    writer: Writer, measuring: Engine
) -> None:
    long = Ask({"tokens": (5,) * (3 * CHUNK + 1)}, make_params(DiffusionParams(seed=7), {"max_tokens": 1}))
    [first] = submit(measuring, ask(writer, 0, min_tokens=40, max_tokens=40))
    written = 0
    while written < 3:
        written += sum(isinstance(event, Progress) and event.stage == "generate" for event in tick(measuring))
    [second] = submit(measuring, long)
    steps: list[str] = []
    while second in measuring.scheduler.entries:
        told = [event for event in tick(measuring) if isinstance(event, Progress) and event.stage == "generate"]
        steps += [event.request_id for event in told]
    pieces = steps.count(second)
    assert pieces == 4 and first in measuring.scheduler.entries, "the other still writes"
    assert steps.count(first) >= pieces - 1, "and has written meanwhile"
    drain(measuring)


def test_a_row_that_fails_fails_only_its_request(writer: Writer, engine: Engine) -> None:
    [expected] = run(engine, ask(writer, 1))
    bad, good = submit(engine, ask(writer, 0), ask(writer, 1))
    while not any("kv" in state and state.id.startswith(bad) for state in engine.runner.states.values()):
        tick(engine)
    [broken] = [state for state in engine.runner.states.values() if state.id.startswith(bad)]
    broken["kv"] = KV(Slabs(), None, broken["kv"].whole, broken["kv"].data[:1, :, None].clone())  # layers are missing
    events = drain(engine)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert tokens(results(engine, events, [good])[0]) == tokens(expected)
    assert engine.runner.forwards.retries.total() == 1, "the forward that the bad row was in"
    engine.runner.forwards.retries.clear()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_no_word_and_ends_its_request(writer: Writer, engine: Engine, temperature: float) -> None:
    [expected] = run(engine, ask(writer, 1))
    bad, good = submit(engine, ask(writer, 0, temperature=temperature, min_tokens=4, max_tokens=8), ask(writer, 1))
    spoil(engine, bad)
    events = drain(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.request_id == bad and isinstance(failed.error, NumericalError)
    assert tokens(results(engine, events, [good])[0]) == tokens(expected)


@pytest.mark.shows("text out", "streams", "company")
def test_what_is_streamed_is_the_whole_and_nobody_says_of_how_many_steps_one_is(writer: Writer, engine: Engine) -> None:
    asks = [ask(writer, index) for index in range(3)]
    whole = run(engine, *(replace(each, chunks=False) for each in asks))
    ids = submit(engine, *asks)
    events = drain(engine)
    for id_, result in zip(ids, results(engine, events, ids), strict=True):
        pieces = [event for event in events if isinstance(event, Chunk) and event.request_id == id_]
        assert "".join(piece.data for piece in pieces) == result.text
        assert result.text == whole[ids.index(id_)].text, "nobody listened to it, and it is the same"
        assert [piece.start for piece in pieces] == [
            len("".join(p.data for p in pieces[:i])) for i in range(len(pieces))
        ]
        steps = [e for e in events if isinstance(e, Progress) and e.request_id == id_ and e.stage == "generate"]
        assert [(step.step, step.steps) for step in steps] == [(i + 1, None) for i in range(len(steps))]


def briefly(engine: Engine) -> tuple[list[Event], int]:
    """All that comes of what is in progress, and in how many ticks, with time for several tokens in each."""
    events, ticks = list[Event](), 0
    while not engine.idle:
        events, ticks = events + engine.tick(3600), ticks + 1
    return events, ticks


@pytest.mark.shows("text out", "streams", "company")
def test_what_is_written_in_ticks_of_several_tokens_is_what_is_written_in_one_of_each(
    writer: Writer, engine: Engine
) -> None:
    asks = [ask(writer, index) for index in range(3)]
    run(engine, *asks)  # the beginnings of prompts are known now
    ids = submit(engine, *asks)
    before = engine.scheduler.tenants[""].served
    events = drain(engine)
    expected = results(engine, events, ids)
    single, paid = count(events), engine.scheduler.tenants[""].served - before
    ids = submit(engine, *asks)
    events, ticks = briefly(engine)
    for id_, result, whole in zip(ids, results(engine, events, ids), expected, strict=True):
        assert tokens(result) == tokens(whole)
        pieces = [event for event in events if isinstance(event, Chunk) and event.request_id == id_]
        assert "".join(piece.data for piece in pieces) == whole.text
        assert [piece.start for piece in pieces] == [
            len("".join(p.data for p in pieces[:i])) for i in range(len(pieces))
        ]
        steps = [e.step for e in events if isinstance(e, Progress) and e.request_id == id_ and e.stage == "generate"]
        assert steps == sorted(set(steps)) and steps[-1] == len(result.steps["generate"])
    assert ticks < single / 3, "there was time for more than one in a tick"
    assert engine.scheduler.tenants[""].served - before == 2 * paid


def count(events: Sequence[Event]) -> int:
    """Steps of the loop that writes, of all requests."""
    return sum(isinstance(event, Progress) and event.stage == "generate" for event in events)


def test_what_was_written_before_a_failure_in_the_same_tick_is_told_before_it(writer: Writer, engine: Engine) -> None:
    wanted = ask(writer, 1, max_tokens=24, min_tokens=24)
    [expected] = run(engine, wanted)
    [id_] = submit(engine, wanted)
    before = list[Event]()
    while not count(before):
        before += tick(engine)
    forwards = engine.runner.forwards.count

    def fail(network: nn.Module, given: tuple[Any, ...]) -> None:
        if engine.runner.forwards.count == forwards + 3:
            raise RuntimeError("the third one more")

    hook = engine.runner.pipeline.ctx.network("model").register_forward_pre_hook(fail)
    try:
        *events, last, failed = engine.tick(3600)
    finally:
        hook.remove()
    assert isinstance(failed, Failed) and failed.request_id == id_
    assert isinstance(last, Progress) and last.step == count(before) + 2
    said = "".join(event.data for event in [*before, *events] if isinstance(event, Chunk))
    assert said and expected.text.startswith(said)


def test_a_stop_text_ends_the_answer_before_it(writer: Writer, engine: Engine) -> None:
    [whole] = run(engine, ask(writer, 2))
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    found, streamed = run(engine, ask(writer, 2, stop=(stop,))), []
    [id_] = submit(engine, ask(writer, 2, stop=(stop, "never said")))
    streamed = [event.data for event in drain(engine) if isinstance(event, Chunk) and event.request_id == id_]
    assert found[0].text == "".join(streamed) == whole.text[: whole.text.index(stop)]
    assert found[0].written[0].reason == "stop"
    assert whole.written[0].reason == "length"


@pytest.mark.shows("text out", "several", "company")
def test_n_texts_are_n_requests_with_seeds_in_a_row(writer: Writer, engine: Engine) -> None:
    many = ask(writer, 3)
    [found] = run(engine, replace(many, params=replace(many.params, num_outputs_per_prompt=3)))
    singles = run(engine, *(replace(many, params=replace(many.params, seed=10 + index)) for index in range(3)))
    assert [written.tokens for written in found.written] == [tokens(single) for single in singles]
    assert found.texts_written == [single.text for single in singles]


@pytest.mark.parametrize(
    ("prompt", "choices", "says"),
    [
        ({"prompt": ""}, {}, "the prompt is empty"),
        ({"prompt": "word " * 4000}, {}, "this model reads and writes"),
        ({"prompt": "a"}, {"height": 64}, "what comes out is text"),
        ({"prompt": "a"}, {"num_inference_steps": 4}, "use max_tokens"),
        ({"prompt": "a"}, {"temperature": -1.0}, "a number from 0 to 100"),
        ({"prompt": "a"}, {"stop": ("",)}, "an empty text"),
        (
            {"prompt": "a"},
            {"max_tokens": 10**6},
            r"max_tokens=1000000 is too long: .* at most \d+",
        ),
        ({"prompt": "a"}, {"cache": "fast"}, "no step of a text can be skipped"),
        ({"prompt": "a"}, {"loras": ("night",)}, "night"),
        ({"messages": [{"role": "robot", "content": "a"}]}, {}, "use one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": "b"}, {}, "leave one out"),
    ],
)
def test_what_a_model_cannot_write_is_refused(
    writer: Writer, engine: Engine, prompt: dict[str, Any], choices: dict[str, Any], says: str
) -> None:
    if choices.keys() & {"height", "num_inference_steps", "cache"} and "image" in engine.runner.pipeline.results:
        pytest.skip("it may draw, and then that can be chosen")
    with pytest.raises(RequestError, match=says):
        run(engine, Ask(prompt, make_params(None, choices)))


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"cache": CacheConfig("teacache", 0.1)}, "cache=teacache"),
    ],
)
def test_what_is_not_there_for_texts_is_refused_at_the_start(
    folder: Path, engine: Engine, chosen: dict[str, Any], name: str
) -> None:
    if "image" in engine.runner.pipeline.results:
        pytest.skip("it may draw, and then that can be chosen")
    with pytest.raises(ConfigError, match=f"writes text, for which {name} is not there"):
        start(config(folder, **chosen))


@pytest.mark.parametrize("mode", [pytest.param(m, marks=pytest.mark.shows(m)) for m in ("layers", "components")])
def test_weights_that_wait_elsewhere_write_the_same(
    writer: Writer, folder: Path, engine: Engine, mode: Literal["layers", "components"]
) -> None:
    asks = [ask(writer, index, max_tokens=4) for index in (0, 1)]
    expected = [tokens(result) for result in run(engine, *asks)]
    away = start(config(folder, offload=OffloadConfig(mode)))
    assert [tokens(result) for result in run(away, *asks)] == expected
    away.close()


@pytest.mark.parametrize("scheme", [pytest.param(s, marks=pytest.mark.shows(s, "company")) for s in ("int8", "int4")])
def test_packed_weights_write_the_same_in_any_company(writer: Writer, folder: Path, scheme: str) -> None:
    packed = start(config(folder, quantize=QuantConfig({"model": scheme})))
    network = packed.runner.pipeline.ctx.network("model")
    assert quantized_layers(network)
    asks = [ask(writer, index, max_tokens=6) for index in (0, 1, 4)]
    alone = [tokens(run(packed, each)[0]) for each in asks]
    assert [tokens(result) for result in run(packed, *asks)] == alone
    packed.close()


@pytest.mark.shows("reuse", "company")
def test_a_beginning_that_was_read_before_is_not_read_again_and_changes_nothing(
    writer: Writer, folder: Path, engine: Engine
) -> None:
    long = max((prompt for prompt in writer.prompts if isinstance(prompt, str)), key=len)
    choices = {"temperature": 0.9, "max_tokens": 9}
    prompts = (long, f"{long} and a star", f"another one, {long}")
    asks = [Ask(prompt, make_params(DiffusionParams(seed=3), choices)) for prompt in prompts]
    forgetful = start(config(folder, schedule=ScheduleConfig(strict_slots=True, company="always", memo_bytes=0)))
    expected = [tokens(run(forgetful, each)[0]) for each in asks]
    assert not any(result.written[0].reused for result in run(forgetful, *asks))
    forgetful.close()
    engine.runner.memo.clear()
    [first] = run(engine, asks[0])
    assert first.written[0].reused == 0
    # Again, one that begins alike and one that does not, one of them paused, beside one that is cancelled.
    ids = submit(engine, *asks, asks[1])
    engine.tick()
    engine.pause(ids[1])
    engine.cancel(ids[3])
    engine.tick()
    engine.resume(ids[1])
    again, alike, other = results(engine, drain(engine), ids[:3])
    whole = (first.prompt_tokens - 1) // CHUNK * CHUNK
    assert whole >= CHUNK
    assert [result.written[0].reused for result in (again, alike, other)] == [whole, whole, 0]
    assert [tokens(result) for result in (again, alike, other)] == expected
    assert tokens(first) == expected[0]


@pytest.mark.crossed
def test_in_two_pools_the_same_is_written_piece_by_piece(writer: Writer, engine: Engine, folder: Path) -> None:
    asks = [ask(writer, index) for index in range(3)]
    alone = run(engine, *asks)
    first = next(stage.name for stage in engine.runner.pipeline.stages if isinstance(stage, Generate))
    names = [stage.name for stage in engine.runner.pipeline.stages]
    reading = PoolConfig("read", tuple(names[: names.index(first)]), connector="local")
    placed = DeployConfig((reading, PoolConfig("write", ("*",), connector="local")))
    with closing(Pools(config(folder, deploy=placed))) as pools:
        found = told(pools, *asks)
    for expected, events in zip(alone, found, strict=True):
        end = events[-1]
        assert isinstance(end, Done), end
        assert tokens(end.result) == tokens(expected) and end.result.prompt_tokens == expected.prompt_tokens
        pieces = [event for event in events if isinstance(event, Chunk) and event.medium == "text"]
        assert "".join(piece.data for piece in pieces) == expected.text


def test_who_would_remember_too_much_beside_others_waits_and_writes_the_same(
    writer: Writer, folder: Path, engine: Engine
) -> None:
    asks = [ask(writer, index) for index in range(3)]
    expected = [tokens(result) for result in run(engine, *asks)]
    network = engine.runner.pipeline.ctx.components.wherever("model")
    assert isinstance(network, Decoder)
    bound = ScheduleConfig(strict_slots=True, company="always", running_bytes=300 * network.sizes.token_bytes)
    narrow = start(config(folder, schedule=bound))
    ids, events, most = submit(narrow, *asks), list[Event](), 0
    while not narrow.idle:
        events += narrow.tick()
        most = max(most, len(narrow.runner.jobs))
    assert most < 3, "not all at once"
    assert [tokens(result) for result in results(narrow, events, ids)] == expected
    with pytest.raises(RequestError, match=r"3 x \S+ KiB are to be remembered .* room for \S+ KiB \(running_bytes\)"):
        submit(narrow, ask(writer, 0, max_tokens=150, num_outputs_per_prompt=3))
    narrow.close()


@pytest.mark.shows("LoRA", "company")
def test_every_request_wears_its_own_adapter_and_no_other_reads_what_one_with_it_has_read(
    folder: Path, engine: Engine, tmp_path: Path
) -> None:
    layers, long = layers_telling(folder), "one two three " * 60
    worn = [
        [str(write(tmp_path / f"{seed}.safetensors", layers, peft("base_model.model."), seed=seed))] for seed in (1, 2)
    ]
    plain = Ask(long, make_params(DiffusionParams(seed=3), {"temperature": 1.5, "top_k": 0, "max_tokens": 9}))
    asks = [plain, *(with_params(plain, loras=loras) for loras in worn), plain]
    engine.runner.memo.clear()
    alone = [run(engine, each)[0] for each in asks]
    assert [bool(result.written[0].reused) for result in alone] == [False, False, False, True]
    assert len({tokens(result) for result in alone}) == 3
    again = run(engine, *asks)
    assert [tokens(result) for result in again] == [tokens(result) for result in alone]
    assert all(result.written[0].reused for result in again)
    other = start(config(merged(folder, tmp_path / "merged", Path(worn[0][0]), 1.0)))
    assert tokens(run(other, plain)[0]) == tokens(alone[1])
    other.close()


@pytest.mark.parametrize("parallel", [ParallelConfig(ulysses=2), ParallelConfig(tensor=2, cfg=2)])
def test_ranks_that_share_no_weights_are_refused_before_any_is_started(folder: Path, parallel: ParallelConfig) -> None:
    with pytest.raises(ConfigError, match=f"writes text, for which {parallel} is not there"):
        explain(config(folder, parallel=parallel))


def test_what_is_remembered_of_texts_is_explained(folder: Path) -> None:
    found = {choice.name: choice.value for choice in explain(config(folder, schedule=ScheduleConfig(memo_bytes=10**6)))}
    assert found["beginnings"] == "at most 977 KiB"
    assert found["texts in progress"].startswith("half of what is free")
