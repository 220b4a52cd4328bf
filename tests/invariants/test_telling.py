"""What is promised of all that makes one token after the other, text, speech or both: the same tests for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omnimuse.ar.kv import KV, Reading, Slabs
from omnimuse.core.config import Config, ModelConfig, QuantConfig, ScheduleConfig
from omnimuse.core.output import Done, Event, Failed
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.state import State
from omnimuse.pipeline.talking import Talking
from omnimuse.quant.abreast import outputs_together
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.explain import explain
from omnimuse.worker.pack import pack_checkpoint
from tests.carrying import three
from tests.checkpoints.families import ANSWERERS, SPEAKERS, WRITERS
from tests.checkpoints.wishes import Answerer, Speaker, Writer
from tests.distance import distance
from tests.invariants import test_answering, test_speaking, test_writing
from tests.invariants.conftest import blocks_of, config, counts, drain, nap, runs_of_blocks, submit, tick
from tests.invariants.test_pools import through
from tests.invariants.test_quantized import FAR, networks

Teller = Writer | Speaker | Answerer
WRITING = [pytest.param(each, id=f"writes-{each.name}") for each in WRITERS]
SPEAKING = [
    *(pytest.param(each, id=f"speaks-{each.name}") for each in SPEAKERS),
    *(pytest.param(each, id=f"answers-{each.name}") for each in ANSWERERS),
]
speaking = pytest.mark.parametrize("teller", SPEAKING, indirect=True)

pytestmark = pytest.mark.crossed


@pytest.fixture(scope="module", params=[*WRITING, *SPEAKING])
def teller(request: pytest.FixtureRequest) -> Teller:
    found: Teller = request.param
    return found


def asks(teller: Teller, **choices: Any) -> list[Ask]:
    """Two requests that are soon over."""
    if isinstance(teller, Writer):
        return [test_writing.ask(teller, index, **{"max_tokens": 6, **choices}) for index in (0, 1)]
    if isinstance(teller, Speaker):
        wanted = test_speaking.asks(teller, **{"max_tokens": 6, **choices})
        return [wanted[0], replace(wanted[-1], params=replace(wanted[-1].params, seed=21))]
    return [test_answering.ask(number, **{"max_tokens": 6, **choices}) for number in (0, 1)]


def made(events: Sequence[Event], id_: str) -> list[Any]:
    """What a request ended with: the tokens of every output, then its sounds."""
    for event in events:
        if isinstance(event, Failed) and event.request_id == id_:
            raise event.error
    [result] = [event.result for event in events if isinstance(event, Done) and event.request_id == id_]
    return [*(note.tokens for note in result.written), *(sound for sound in result.tensors.get("audio", ()))]


def run(engine: Engine, *wanted: Ask) -> list[list[Any]]:
    """All of them, in flight together."""
    ids = submit(engine, *wanted)
    events = drain(engine)
    return [made(events, id_) for id_ in ids]


def same(found: list[Any], expected: list[Any], far: float = 0.0) -> bool:
    """Whether tokens are equal, and sounds to the bit or as near as this, relatively."""
    if len(found) != len(expected):
        return False
    return all(
        ours == theirs
        if isinstance(theirs, tuple)
        else ours.shape == theirs.shape and float((ours - theirs).norm()) <= far * float(theirs.norm())
        for ours, theirs in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(
    "tier", [pytest.param(name, marks=pytest.mark.shows(name, "company")) for name in ("invariant", "exact")]
)
def test_in_company_it_is_alone_to_the_bit(teller: Teller, folder: Path, tier: Any) -> None:
    check_company(teller, config(folder, schedule=ScheduleConfig(tier=tier, strict_slots=True, company="always")))


def check_company(teller: Teller, chosen: Config) -> None:
    """That what is told together is what is told alone, to the bit."""
    engine, wanted = start(chosen), asks(teller)
    alone = [run(engine, each)[0] for each in wanted]
    together = run(engine, *wanted, wanted[0])
    engine.close()
    assert all(same(found, expected) for found, expected in zip(together, (*alone, alone[0]), strict=True))


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(name, marks=pytest.mark.shows(name, "company", "invariant"))
        for name in ("int8-dynamic", "fp8", "fp8-dynamic")
    ],
)
def test_packed_weights_in_company_tell_what_they_tell_alone_to_the_bit(
    teller: Teller, folder: Path, scheme: str
) -> None:
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    check_company(teller, config(folder, schedule=schedule, quantize=QuantConfig({"": scheme})))


@pytest.mark.shows("bfloat16", "company", "invariant")
@pytest.mark.parametrize("schemes", [{}, {"": "int4"}], ids=["floats", "int4"])
def test_in_bfloat16_it_is_alone_in_company_to_the_bit(teller: Teller, folder: Path, schemes: dict[str, str]) -> None:
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    chosen = ModelConfig(str(folder), dtype="bfloat16", device="cpu")
    asked = config(folder, schedule=schedule, quantize=QuantConfig(schemes))
    check_company(teller, replace(asked, model=chosen))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_where_nobody_asks_for_a_format_packed_weights_tell_in_company_what_they_tell_alone_to_the_bit(
    teller: Teller, folder: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that is slow at bfloat16, to which tokens of what is read once are rounded."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    monkeypatch.delenv("OMNIMUSE_DTYPE", raising=False)
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    asked = config(folder, schedule=schedule, quantize=QuantConfig({"": scheme}))
    asked = replace(asked, model=ModelConfig(str(folder), device="cpu"))
    told = [choice.value for choice in explain(asked) if choice.topic == "quantize" and choice.name.endswith(" tokens")]
    once = f"{'eight' if scheme == 'int8' else 'four'} bits read once"
    assert set(told) <= {once if outputs_together() else "floats"}
    assert told or scheme == "int4" or not outputs_together(), "layers of tiny networks are too narrow for four bits"
    check_company(teller, asked)


def test_likeliest_tokens_that_come_in_one_stride_are_those_that_come_one_by_one(
    teller: Teller, engine: Engine
) -> None:
    wanted = [*asks(teller, temperature=0, max_tokens=12), *asks(teller, temperature=0, max_tokens=5)]
    run(engine, *wanted)  # the beginnings of prompts are known now
    counted = [engine.runner.forwards.count]
    expected = run(engine, *wanted)
    counted.append(engine.runner.forwards.count)
    ids = submit(engine, *wanted)
    events, _ = test_writing.briefly(engine)
    counted.append(engine.runner.forwards.count)
    assert all(same(made(events, id_), whole) for id_, whole in zip(ids, expected, strict=True))
    for id_ in ids:
        [result] = [event.result for event in events if isinstance(event, Done) and event.request_id == id_]
        for note in result.written:
            assert len(result.steps.get("generate", note.tokens)) == len(note.tokens), "every token has its seconds"
    if isinstance(teller, Writer):
        assert counted[2] - counted[1] < (counted[1] - counted[0]) / 2


@pytest.mark.shows("recording")
def test_a_recording_changes_nothing_and_names_all_blocks(teller: Teller, engine: Engine, tmp_path: Path) -> None:
    [wanted, *_] = asks(teller)
    found = []
    for records in (False, True):
        engine.runner.memo.clear()
        if records:
            engine.recordings.begin()
        found += run(engine, wanted)
    [trace] = engine.recordings.end(tmp_path / "trace.json.gz")
    assert same(*found)
    named = {str(event.get("name")) for event in json.loads(trace.read_bytes())["traceEvents"]}
    ran = [names for names in blocks_of(engine) if named.issuperset(names)]
    assert any(name.startswith(("model.", "talker.")) for names in ran for name in names)


@pytest.mark.shows("block timings")
def test_who_times_blocks_makes_the_same_and_hears_of_a_run_a_token(teller: Teller, engine: Engine) -> None:
    [wanted, *_] = asks(teller)
    engine.runner.memo.clear()
    [expected] = run(engine, wanted)
    engine.runner.memo.clear()
    [id_] = submit(engine, replace(wanted, blocks=True))
    events = drain(engine)
    assert same(made(events, id_), expected)
    [result] = [event.result for event in events if isinstance(event, Done)]
    runs_of_blocks(engine, result)
    assert max(map(len, result.blocks.values())) >= max(map(len, result.steps.values())) > 1


@pytest.mark.shows("several", "company")
def test_n_outputs_are_n_requests_with_seeds_in_a_row(teller: Teller, engine: Engine) -> None:
    [many, *_] = asks(teller)
    seed = many.params.seed or 0
    [found] = run(engine, replace(many, params=replace(many.params, num_outputs_per_prompt=2)))
    singles = run(engine, *(replace(many, params=replace(many.params, seed=seed + index)) for index in range(2)))
    tokens, sounds = zip(*([part for part in each if isinstance(part, tuple)] for each in singles), strict=True), found
    expected = [part for parts in tokens for part in parts]
    expected += [part for each in singles for part in each if not isinstance(part, tuple)]
    assert len(sounds) == len(expected) and same(found, expected, 1e-5)


def test_who_waits_after_every_step_makes_what_it_would_have(teller: Teller, engine: Engine) -> None:
    [wanted, *_] = asks(teller)
    [expected] = run(engine, wanted)
    [id_] = submit(engine, wanted)
    events: list[Event] = []
    while True:
        events += tick(engine)
        if engine.idle:
            break
        engine.pause(id_)
        events += tick(engine)
        assert engine.idle, "it is parked"
        engine.resume(id_)
    assert same(made(events, id_), expected, 1e-5)


@pytest.mark.shows("sleep", "company")
def test_who_has_begun_when_the_weights_leave_makes_what_it_would_have_to_the_bit(
    teller: Teller, engine: Engine
) -> None:
    wanted, found = asks(teller), list[list[list[Any]]]()
    for rests in (False, True):
        engine.runner.memo.clear()
        ids = submit(engine, *wanted)
        events = [event for _ in range(4) for event in tick(engine)]
        if rests:
            nap(engine)
        events += drain(engine)
        found.append([made(events, id_) for id_ in ids])
    assert all(same(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_who_is_cancelled_at_any_step_is_gone_and_another_makes_what_it_would_have(
    teller: Teller, engine: Engine
) -> None:
    stays, goes = asks(teller)
    [expected] = run(engine, stays)
    for step in range(8):
        kept, gone = submit(engine, stays, goes)
        events: list[Event] = []
        for _ in range(step):
            events += engine.tick()
        engine.cancel(gone)
        events += drain(engine)
        assert same(made(events, kept), expected, 1e-5), step
        assert not engine.runner.states


def less(kv: KV) -> KV:
    """A memory in which layers are missing."""
    return KV(Slabs(), None, kv.whole, kv.data[:1, :, None].clone())


def voice_of(engine: Engine, state: State) -> Talking | None:
    """What is known of what it says, on whatever track that is; None: it does not speak yet."""
    here, found = state.track, None
    for track in range(len(engine.runner.pipeline.tracks)):
        state.turn(track)
        found = state.working.get("talk", found)
    state.turn(here)
    return found


def without_a_talker(state: State, talking: Talking) -> None:
    name = "voice_kv" if "voice_kv" in state else "kv"
    state[name] = less(state[name])


def without_a_predictor(state: State, talking: Talking) -> None:
    if talking.kv is None:
        pytest.skip("a frame of its is one code, which the talker says")
    talking.kv = less(talking.kv)


@speaking
@pytest.mark.parametrize("broken", [without_a_talker, without_a_predictor])
def test_a_row_of_its_voice_that_fails_fails_only_its_request(
    teller: Teller, engine: Engine, broken: Callable[[State, Talking], None]
) -> None:
    goes, stays = asks(teller, **({} if isinstance(teller, Speaker) else {"max_tokens": 20}))
    [expected] = run(engine, stays)
    bad, good = submit(engine, goes, stays)
    events, saying = list[Event](), dict[str, tuple[State, Talking]]()
    while len(saying) < 2:
        events += tick(engine)
        states = {state.id.partition("/")[0]: state for state in engine.runner.states.values()}
        saying = {id_: (state, said) for id_, state in states.items() if (said := voice_of(engine, state)) is not None}
    [guilty] = [found for id_, found in saying.items() if id_.startswith(bad)]
    broken(*guilty)
    events += drain(engine)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert same(made(events, good), expected, 1e-5)
    assert engine.runner.forwards.retries.total() == 1, "the forward that the bad row was in"
    engine.runner.forwards.retries.clear()


@speaking
@pytest.mark.parametrize(
    "scheme", [pytest.param(name, marks=pytest.mark.shows(name, "company")) for name in ("int8", "int4")]
)
def test_packed_weights_say_the_same_in_any_company(teller: Teller, folder: Path, scheme: str) -> None:
    packed = start(config(folder, quantize=QuantConfig({"": scheme})))
    components = packed.runner.pipeline.ctx.components
    assert all(quantized_layers(components.wherever(name)) for name in ("model", "talker") if name in components)
    wanted = asks(teller)
    alone = [run(packed, each)[0] for each in wanted]
    together = run(packed, *wanted)
    packed.close()
    assert all(same(found, expected, 1e-5) for found, expected in zip(together, alone, strict=True))


Forward = tuple[str, list[Any], list[Tensor]]
"""A network by its name, rows, and what it made of each."""


def overheard(engine: Engine, *wanted: Ask) -> list[Forward]:
    """All forwards of these, with what their rows remembered then."""
    heard, ctx = list[Forward](), engine.runner.pipeline.ctx

    def note(name: str, network: nn.Module, given: tuple[Any, ...], made: list[Tensor]) -> None:
        rows = [replace(row, kv=row.kv.to(row.kv.device)) if isinstance(row, Reading) else row for row in given[0]]
        heard.append((name, rows, [each.clone() for each in made]))

    found = [name for name in ctx.components if ctx.components.wherever(name) in networks(engine)]
    hooks = [ctx.network(name).register_forward_hook(partial(note, name)) for name in found]
    run(engine, *wanted)
    for hook in hooks:
        hook.remove()
    return heard


@pytest.mark.parametrize("scheme", [pytest.param(name, marks=pytest.mark.shows(name)) for name in FAR])
def test_packed_weights_make_nearly_what_floats_make_of_the_same(
    teller: Teller, folder: Path, engine: Engine, scheme: str
) -> None:
    """One token that another weight chooses changes all behind it: so each forward is made again, of what it read."""
    engine.runner.memo.clear()
    heard = overheard(engine, *asks(teller, temperature=0.9))
    packed = start(config(folder, quantize=QuantConfig({"": scheme})))
    ctx = packed.runner.pipeline.ctx
    names = {name for name, _, _ in heard}
    expected = ("model",) if isinstance(teller, Writer) else ("model", "talker", "predictor")
    assert names >= {name for name in expected if name in ctx.components}
    for name in names:
        assert quantized_layers(ctx.network(name))
    for name, rows, made in heard:
        with torch.inference_mode():
            found = ctx.network(name)(rows)
        for ours, theirs in zip(found, made, strict=True):
            assert 0 < distance(ours, theirs) < FAR[scheme], name
    packed.close()


@pytest.mark.shows("packed once")
def test_a_folder_that_is_packed_once_tells_to_the_bit_what_packing_at_every_start_tells(
    teller: Teller, folder: Path, tmp_path: Path
) -> None:
    chosen = config(folder, quantize=QuantConfig({"": "int8"}))
    pack_checkpoint(chosen, tmp_path / "packed")
    told = []
    for each in (config(tmp_path / "packed"), chosen):
        engine = start(each)
        assert any(quantized_layers(network) for network in networks(engine))
        told.append(run(engine, *asks(teller, temperature=0.9)))
        engine.close()
    assert all(same(found, expected) for found, expected in zip(*told, strict=True))


@pytest.mark.shows("pools")
@pytest.mark.parametrize("teller", WRITING, indirect=True)
def test_in_three_pools_the_same_is_written(teller: Teller, folder: Path, engine: Engine) -> None:
    deploy = three(engine.runner.pipeline.stages)
    engines = [start(config(folder, deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]
    for wanted in asks(teller, temperature=0.9):
        request = engine.make_request(replace(wanted, blocks=True))
        for each in (engine, *engines):
            each.runner.memo.clear()
        engine.submit(replace(request, id=f"whole-{request.id}"))
        whole, found = drain(engine), through(engines, [request])
        assert same(made(found, request.id), made(whole, f"whole-{request.id}"))
        expected, result = (event.result for event in (*whole, *found) if isinstance(event, Done))
        assert counts(result) == counts(expected), "what it took in every pool"
    for each in engines:
        assert not each.runner.states and not each.runner.jobs
        each.close()
