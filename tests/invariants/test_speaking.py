"""The promises of the house for models that speak, with tiny random weights: codes are equal, one by one."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import CacheConfig, OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, NumericalError, RequestError
from omnimuse.core.output import Chunk, Done, Event, Failed, Progress
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.pipeline.speech import FIRST, PIECE
from omnimuse.worker.explain import explain
from omnimuse.worker.warm_up import SMALL, warm_up_ask
from tests.checkpoints.adapters import layers_telling, merged, peft, write
from tests.checkpoints.families import SPEAKERS
from tests.checkpoints.wishes import Speaker
from tests.distance import distance
from tests.invariants.conftest import config, drain, results, spoil, submit, tick, told, with_params
from tests.turns import in_turns


@pytest.fixture(
    scope="module",
    params=in_turns(SPEAKERS, "Qwen3TTSForConditionalGeneration-custom_voice", lambda speaker: speaker.name),
)
def speaker(request: pytest.FixtureRequest) -> Speaker:
    found: Speaker = request.param
    return found


@pytest.fixture(scope="module")
def teller(speaker: Speaker) -> Speaker:
    """Whose folder and engine there are."""
    return speaker


def asks(speaker: Speaker, output: str = "pt", **choices: Any) -> list[Ask]:
    heard = [] if speaker.sound is None else [speaker.sound]
    return [
        Ask(
            {"prompt": text, "sounds": heard},
            make_params(DiffusionParams(seed=seed, output_type=output), {**wish, **choices}),
            chunks=True,
        )
        for text, wish, seed in speaker.wishes
    ]


def spoken(engine: Engine, *wanted: Ask) -> list[Tensor]:
    """What all asks give, in flight together."""
    ids = submit(engine, *wanted)
    return [result.tensors["audio"][0] for result in results(engine, drain(engine), ids)]


@pytest.mark.shows("sounds heard", families=["Qwen3TTSForConditionalGeneration-base"])
def test_codes_in_company_are_those_that_the_reference_says_alone(speaker: Speaker, engine: Engine) -> None:
    found = spoken(engine, *asks(speaker, "latent"))
    for codes, (expected, _) in zip(found, speaker.kept(), strict=True):
        assert torch.equal(codes.long(), expected)


@pytest.mark.shows("sound out", "company")
def test_the_waveform_is_that_of_the_reference(speaker: Speaker, engine: Engine) -> None:
    for sound, (_, expected) in zip(spoken(engine, *asks(speaker)), speaker.kept(), strict=True):
        assert sound.shape == (1, len(expected))
        assert distance(sound[0], expected) < 1e-5


@pytest.mark.shows("sound out", "streams", "company")
def test_pieces_that_are_told_while_it_is_made_are_the_whole(speaker: Speaker, engine: Engine) -> None:
    ids = submit(engine, *asks(speaker))
    events = drain(engine)
    for id_, result in zip(ids, results(engine, events, ids), strict=True):
        pieces = [event for event in events if isinstance(event, Chunk) and event.request_id == id_]
        whole = torch.cat([torch.from_numpy(piece.data) for piece in pieces], dim=1)
        assert torch.equal(whole, result.tensors["audio"][0])
        starts = [0, *torch.tensor([piece.data.shape[1] for piece in pieces]).cumsum(0).tolist()][:-1]
        assert [piece.start for piece in pieces] == starts


def test_who_is_cancelled_is_gone_and_the_others_say_what_they_would_have(speaker: Speaker, engine: Engine) -> None:
    wanted = asks(speaker, "latent")
    ids = submit(engine, *wanted, wanted[0])
    events: list[Event] = []
    while sum(isinstance(event, Progress) and event.stage == "talk" for event in events) < 8:
        events += tick(engine)
    engine.cancel(ids[-1])
    events += drain(engine)
    for result, (expected, _) in zip(results(engine, events, ids[:-1]), speaker.kept(), strict=True):
        assert torch.equal(result.tensors["audio"][0].long(), expected)
    assert not engine.runner.states


def test_what_is_no_number_is_not_said_and_ends_its_request(speaker: Speaker, engine: Engine) -> None:
    wanted = asks(speaker, "latent")
    good, bad = submit(engine, wanted[0], wanted[0])
    spoil(engine, bad)
    events = drain(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.request_id == bad and isinstance(failed.error, NumericalError)
    [found], (expected, _) = results(engine, events, [good]), next(iter(speaker.kept()))
    assert torch.equal(found.tensors["audio"][0].long(), expected)


def test_who_waits_in_mid_word_says_what_it_would_have(speaker: Speaker, engine: Engine) -> None:
    [id_] = submit(engine, asks(speaker)[0])
    events: list[Event] = []
    for _ in range(4):
        events += engine.tick()
    engine.pause(id_)
    events += engine.tick()
    assert not any(isinstance(event, Done) for event in events)
    engine.resume(id_)
    events += drain(engine)
    [result] = results(engine, events, [id_])
    codes, wave = speaker.kept()[0]
    assert distance(result.tensors["audio"][0][0], wave) < 1e-5
    assert len(result.written[0].tokens) == codes.shape[1] + 1


@pytest.mark.parametrize("mode", [pytest.param(m, marks=pytest.mark.shows(m)) for m in ("components", "layers")])
def test_weights_that_wait_elsewhere_say_the_same(speaker: Speaker, folder: Path, mode: Any, tmp_path: Path) -> None:
    engine = start(config(folder, offload=OffloadConfig(mode=mode, folder=tmp_path)))
    try:
        [found] = spoken(engine, asks(speaker, "latent")[0])
    finally:
        engine.close()
    assert torch.equal(found.long(), speaker.kept()[0][0])


def test_what_cannot_be_had_is_refused_by_name(speaker: Speaker, folder: Path, engine: Engine) -> None:
    for choices, message in (
        ({"voice": "nobody"}, "voice='nobody'"),
        ({"language": "klingon"}, "language='klingon' is not known to this checkpoint"),
        ({"stop": ("a",)}, "extra has no field 'stop'"),
        ({"max_tokens": 1, "min_tokens": 2}, "min_tokens=2 is more"),
        ({"height": 64}, "a sound has no sides"),
        ({"num_inference_steps": 4}, "as many steps as frames"),
    ):
        with pytest.raises(RequestError, match=message):
            submit(engine, asks(speaker, **choices)[0])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="speaks, for which cache=teacache is not there"):
        start(config(folder, cache=CacheConfig(kind="teacache")))
    with pytest.raises(ConfigError, match="speaks, for which ulysses=2 is not there"):
        explain(config(folder, parallel=ParallelConfig(ulysses=2)))


@pytest.mark.shows("LoRA", "company")
def test_an_adapter_of_the_talker_is_worn_as_if_it_were_in_its_weights(
    speaker: Speaker, folder: Path, engine: Engine, tmp_path: Path
) -> None:
    adapter = write(
        tmp_path / "a.safetensors", layers_telling(folder, r"talker\.model\.layers\."), peft("base_model.model.")
    )
    plain = asks(speaker, "latent")[0]
    bare, found = spoken(engine, plain, with_params(plain, loras=[str(adapter)]))
    other = start(config(merged(folder, tmp_path / "merged", adapter, 1.0)))
    [expected] = spoken(other, plain)
    other.close()
    assert torch.equal(found, expected) and not torch.equal(found, bare)


def test_a_warm_up_is_something_that_the_model_can_say(speaker: Speaker, engine: Engine) -> None:
    wanted = warm_up_ask(SMALL, engine.door)
    assert wanted is not None
    ids = submit(engine, wanted)
    assert results(engine, drain(engine), ids)


def test_the_sound_begins_while_the_model_still_talks(speaker: Speaker, engine: Engine) -> None:
    [id_] = submit(engine, asks(speaker)[-1])
    events = drain(engine)
    talked = [number for number, event in enumerate(events) if isinstance(event, Progress) and event.stage == "talk"]
    heard = [number for number, event in enumerate(events) if isinstance(event, Chunk)]
    codes, _ = speaker.kept()[-1]
    frames = [event.data.shape[1] for event in events if isinstance(event, Chunk)]
    assert heard[0] < talked[-1]
    whole, hop = codes.shape[1], sum(frames) // codes.shape[1]
    ends = [*range(FIRST, whole, PIECE), whole] if whole > FIRST else [whole]
    assert [count // hop for count in frames] == [end - start for start, end in pairwise([0, *ends])]
    results(engine, events, [id_])


def in_pools(folder: Path, **codec: Any) -> Pools:
    """The talker in one pool and its codec in another, both in this process unless `codec` says otherwise."""
    talk, sound = PoolConfig("talk", tracks=(0,), connector="local"), {"connector": "local", **codec}
    return Pools(config(folder, deploy=DeployConfig((talk, PoolConfig("sound", tracks=(1,), **sound)))))


@pytest.mark.crossed
@pytest.mark.shows("pools", "streams")
def test_the_tracks_of_a_model_in_two_pools_say_the_same_samples_piece_by_piece(
    speaker: Speaker, engine: Engine, folder: Path
) -> None:
    wanted = asks(speaker)
    alone = spoken(engine, *wanted)
    with closing(in_pools(folder)) as pools:
        found = told(pools, *wanted)
    for expected, events in zip(alone, found, strict=True):
        end = events[-1]
        assert isinstance(end, Done), end
        assert torch.equal(end.result.tensors["audio"][0], expected)
        assert end.result.written and {"talk", "decode"} <= set(end.result.steps)
        pieces = [event for event in events if isinstance(event, Chunk)]
        assert torch.equal(torch.cat([torch.from_numpy(piece.data) for piece in pieces], dim=1), expected)
        order = [event.stage for event in events if isinstance(event, Progress)]
        if order.count("decode") > 1:
            assert order.index("decode") < len(order) - 1 - order[::-1].index("talk"), "it is heard before all is said"


@pytest.mark.costly
@pytest.mark.parametrize("speaker", SPEAKERS[:1], ids=lambda speaker: speaker.name, indirect=True)
def test_a_codec_that_is_killed_in_mid_speech_is_started_again_and_nothing_is_told_twice(
    speaker: Speaker, engine: Engine, folder: Path
) -> None:
    wanted = max(asks(speaker), key=lambda ask: len(str(ask.prompt)))
    [expected] = spoken(engine, wanted)
    queue: SimpleQueue[Event] = SimpleQueue()
    killed: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, Chunk) and not killed:
            assert seat.replica is not None and seat.replica.pid is not None
            killed.append(seat.replica.pid)
            os.kill(seat.replica.pid, signal.SIGKILL)
        queue.put(event)

    pieces: list[Chunk] = []
    with closing(in_pools(folder, connector="shared_memory")) as pools:
        [seat] = pools.group.seats[1]
        pools.submit(pools.make_request(wanted), hear)
        while not isinstance(event := queue.get(timeout=120), Done | Failed):
            pieces += [event] if isinstance(event, Chunk) else []
    assert isinstance(event, Done), event
    assert torch.equal(event.result.tensors["audio"][0], expected)
    assert torch.equal(torch.cat([torch.from_numpy(piece.data) for piece in pieces], dim=1), expected)
