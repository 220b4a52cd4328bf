"""What a request takes is foretold by small ones of its kind, for every family that lets people choose how large."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.profiler import record_function

from omnimuse.core.config import DecodeConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.evaluations import evaluations_beyond
from omnimuse.core.output import Failed
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask, Request
from omnimuse.engine.engine import Engine
from omnimuse.engine.extents import Extent
from omnimuse.engine.local import bounded, start
from omnimuse.observe.profile import allocated, recorded_events
from omnimuse.worker.place import most_allocated
from tests.checkpoints.families import ALLROUNDERS, ANSWERERS, FAMILIES, SPEAKERS
from tests.checkpoints.wishes import Answerer, Speaker
from tests.invariants.conftest import Subject, config, drain, of, outputs, run, submit, taking, tick, with_params
from tests.invariants.test_device import FAST
from tests.second_device import SecondDevice, moved
from tests.skipping import remembering
from tests.waits import ticking, waits_of_steps


def larger(engine: Engine, asks: list[Ask], sides: tuple[int, ...] = (896, 768, 576)) -> Iterator[Request]:
    """Of each of `asks`, a request that is larger than those that are tried, if it can be."""
    limits = engine.door.limits
    step = limits.size_multiple
    for ask in asks:
        for side in sides:
            size = {"width": -(-side // step) * step, "height": -(-side // step) * step}
            seconds = {"seconds": limits.sound.seconds} if limits.sound and engine.door.spec.medium == "audio" else {}
            with suppress(RequestError):
                request = engine.make_request(with_params(ask, **(seconds or size), output_type="pt"))
                if engine.foretelling.extent.smaller(request) is not None:
                    yield request
                    break


def refused(engine: Engine, request: Request) -> str:
    """What is said of `request` where there is only the room of its widest layer, at its turn and at the door."""
    whole, least = engine.space, engine.runner.working(request, engine.space.tokens)
    engine.space = replace(whole, room=least)
    try:
        engine.submit(request)
        [event] = drain(engine)
        with pytest.raises(RequestError, match="iB at the least") as caught:  # now at the door
            engine.submit(replace(request, id="again"))
    finally:
        engine.space = whole
    assert isinstance(event, Failed) and type(event.error) is RequestError, event
    assert str(event.error) == str(caught.value)
    assert not engine.runner.states and not engine.scheduler.entries
    return str(event.error)


@pytest.mark.crossed
@pytest.mark.slow
def test_what_never_fits_is_refused_by_what_small_ones_of_its_kind_take(shared: Engine, subject: Subject) -> None:
    request = next(larger(shared, subject.asks()), None)
    if request is None:  # it has one size, or no larger one
        limits = shared.door.limits
        assert limits.fixed.width or {"width", "height"} & set(limits.refuses) or limits.max_side < 576
        return
    assert type(shared.foretelling.extent) is not Extent
    refused(shared, request)


@pytest.fixture
def drawn(shared: Engine, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Request | None:
    """One output that is larger than those that are tried, which are smaller than usual, and nothing is known of it;
    None if all are of one size.
    """
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (64, 96))
    for name, nothing in {"kinds": 0, "_known": {}}.items():
        monkeypatch.setattr(shared.foretelling, name, nothing)
    asks = [with_params(ask, num_outputs_per_prompt=1) for ask in subject.asks()]
    request, limits = next(larger(shared, asks, (128, 192, 256)), None), shared.door.limits
    one_size = limits.fixed.width or {"width", "height"} & set(limits.refuses) or limits.size_multiple > 32
    assert request is not None or one_size
    return request


@pytest.mark.crossed
def test_two_are_drawn_one_after_the_other_where_what_is_foretold_of_both_has_no_room(
    shared: Engine, drawn: Request | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (request := drawn) is None:
        return
    shared.foretelling.learn(request)
    need = shared.foretelling.needs(request, shared.space.coming)
    room, counts = need.and_of(need).most, list[int]()
    assert need.beside
    for missing in (1, 0):
        monkeypatch.setattr(shared, "space", replace(shared.space, room=room - missing))
        before = shared.runner.forwards.count
        ids = [shared.submit(replace(request, id=id_)) for id_ in ("one", "other")]
        events = drain(shared)
        assert all(len(outputs(events, id_)) for id_ in ids)
        del events  # what is held takes room
        counts.append(shared.runner.forwards.count - before)
    assert counts[0] == 2 * counts[1]


def compared(engine: Engine, drawn: Request, cache: str) -> None:
    """What is foretold of a request like `drawn` with that step cache is what torch allocates, as without one."""
    door, steps = engine.door, engine.door.limits.fixed.num_inference_steps or 12
    params = replace(drawn.params, output_type="latent", num_inference_steps=steps, strength=None)
    plain = replace(drawn, params=params, more=evaluations_beyond(door.scheduler, params, steps))
    params = replace(params, cache=cache.replace("MASK", ("110" * 24)[: plain.evaluations]))
    request, held = door.with_cache(replace(plain, params=params)), [0]

    def draw(each: Request) -> None:
        engine.submit(each)
        while not engine.idle:
            tick(engine)
            held.append(remembering(engine))

    def foretold_of(each: Request) -> float:
        engine.foretelling.learn(each)
        engine.runner.memo.clear()  # what is tried is encoded anew, too
        took = most_allocated(torch.device("cpu"), partial(draw, each))
        assert took is not None
        return engine.foretelling.takes(each, 0) / max(took.values())

    usual, found = foretold_of(plain), foretold_of(request)  # a solver may remember more than of a single step
    assert 0.95 * min(1.0, usual) < found < 1.1 * max(1.0, usual)
    without, stages = map(engine.foretelling.by_stage, (plain, request))
    grown = max(stages[name] - without.get(name, 0) for name in stages)
    assert 0 < max(held) < 4 * grown, "less than all where what comes before the first step takes more than a step"


@pytest.mark.crossed
@pytest.mark.slow
def test_what_a_step_cache_remembers_is_foretold(shared: Engine, drawn: Request | None) -> None:
    """Six hidden states of every row."""
    if drawn is not None:
        compared(shared, drawn, "taylorseer,order=4,last=0,threshold=9")


REMEMBERING = ("ZImagePipeline", "WanPipeline-A14B", "StableAudioPipeline")


@pytest.mark.costly
@of([family for family in FAMILIES if family.name in REMEMBERING])
@pytest.mark.parametrize("cache", ["teacache,threshold=9", "dbcache,threshold=9,mask=MASK"])
def test_what_any_kind_of_step_cache_remembers_is_foretold(shared: Engine, drawn: Request | None, cache: str) -> None:
    assert drawn is not None
    compared(shared, drawn, cache)


@pytest.mark.crossed
@pytest.mark.slow
def test_who_is_in_progress_is_drawn_on_after_small_ones_of_its_kind_were_tried(
    shared: Engine, drawn: Request | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (request := drawn) is None:
        return
    shared.submit(request)
    expected = outputs(drain(shared), request.id)
    guess = shared.foretelling.extent.guess(request)
    monkeypatch.setattr(shared, "space", replace(shared.space, room=guess.and_of(guess).most - 1))
    shared.submit(request)
    events = tick(shared)
    assert not shared.foretelling.kinds, "there is room for one by any guess"
    newcomer = replace(request, id="newcomer", params=replace(request.params, output_type="latent"))
    shared.submit(newcomer)
    events += tick(shared)
    assert shared.foretelling.kinds == 2, "there is none for both"
    assert newcomer.id not in shared.runner.jobs, "it is known from the next tick on"
    shared.cancel(newcomer.id)
    events += drain(shared)
    assert torch.equal(outputs(events, request.id), expected)


@pytest.mark.crossed
def test_what_a_paused_request_keeps_is_what_torch_has_back_when_it_is_gone(shared: Engine, subject: Subject) -> None:
    kept: list[int] = []
    shared.runner.memo.clear()  # torch tells of no block that was there before

    def draw() -> None:
        [id_] = submit(shared, with_params(subject.ask(0), num_outputs_per_prompt=1))
        while not any(state.position for state in shared.runner.states.values()):
            tick(shared)
        shared.pause(id_)
        tick(shared)
        shared.runner.memo.clear()  # it has what was read
        kept.append(shared.scheduler.entries[id_].kept.states)
        shared.cancel(id_)
        with record_function("gone"):
            tick(shared)

    events = recorded_events(draw)
    [gone] = [float(each["ts"]) for each in events if each.get("name") == "gone" and "dur" in each]
    back = -sum(size for at, size in allocated(events) if at >= gone)
    assert 0.95 * back <= kept[0] <= 1.05 * back and back
    assert not shared.runner.states


DRAWN = ("ZImagePipeline", "WanPipeline-2.1", "StableAudioPipeline")


@pytest.mark.costly
@of([family for family in FAMILIES if family.name in DRAWN])
@pytest.mark.parametrize("output", ["pt", "latent"])
def test_what_two_are_foretold_to_take_together_is_as_true_as_what_one_is(
    shared: Engine, subject: Subject, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [with_params(ask, num_outputs_per_prompt=1) for ask in subject.asks()]
    request = next(larger(shared, asks))
    request = replace(request, params=replace(request.params, output_type=output))
    shared.foretelling.learn(request)
    need = shared.foretelling.needs(request, shared.space.coming)
    pair = need.and_of(need)
    monkeypatch.setattr(shared, "space", replace(shared.space, room=pair.most))

    def taken(*ids: str) -> int:
        def draw() -> None:
            for id_ in ids:
                shared.submit(replace(request, id=id_))
            drain(shared)

        took = most_allocated(torch.device("cpu"), draw)
        assert took is not None
        return max(took.values())

    alone, before = taken("one"), shared.runner.forwards.count
    together = taken("one", "other")
    assert shared.runner.forwards.count - before == request.evaluations, "they shared all forwards"
    assert together / pair.most < 1.05 * max(1.0, alone / need.most)


@of(ALLROUNDERS)
@pytest.mark.parametrize("modalities", [("image",), ("text", "image")], ids=["draws", "thinks and draws"])
def test_what_thinks_before_it_draws_is_tried_without_thinking_and_what_thoughts_take_is_known(
    shared: Engine, subject: Subject, modalities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (48, 64))
    asked = {"modalities": modalities, **({"max_tokens": 20} if "text" in modalities else {})}
    request = shared.make_request(subject.ask(0, width=128, height=128, output_type="pt", extra=asked))
    assert re.search("the nearest size that may fit is|no size of it fits", refused(shared, request))
    foretelling, words = shared.foretelling, shared.runner.remembers(request)[0]
    drawn = max(line.at(128 * 128) for line in foretelling._known[foretelling._kind(request)].lines.values())
    thought = words * 19 // 21 if "text" in modalities else 0  # of 20 tokens and an end of which one was tried
    assert foretelling.takes(request, 0) - drawn == thought


def talk(teller: Speaker | Answerer, frames: int | None) -> Ask:
    """Something that is said in so many frames, or until it ends by itself."""
    params = DiffusionParams(seed=5)
    if isinstance(teller, Answerer):
        extra = {"modalities": ("text", "audio"), "max_tokens": frames, "voice_tokens": frames}
        return Ask({"messages": [{"role": "user", "content": "a red circle"}]}, replace(params, extra=extra))
    text, wish, _ = teller.wishes[0]
    heard = [] if teller.sound is None else [teller.sound]
    return Ask({"prompt": text, "sounds": heard}, make_params(params, {**wish, "max_tokens": frames}))


@pytest.mark.costly
@pytest.mark.parametrize("teller", [*SPEAKERS, *ANSWERERS], ids=lambda teller: teller.name, scope="module")
def test_a_sound_that_never_fits_is_refused_by_what_few_frames_take(engine: Engine, teller: Speaker | Answerer) -> None:
    request = engine.make_request(talk(teller, 150))
    said = refused(engine, request)
    assert "the most tokens that may fit are" in said or "no length of it fits" in said
    few = engine.make_request(talk(teller, 10))
    assert not engine.foretelling.doubts(few, 0), "fewer than are tried"


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("teller", [*SPEAKERS, *ANSWERERS], ids=lambda teller: teller.name, scope="module")
def test_a_sound_that_nobody_gave_a_length_waits_by_the_most_that_is_remembered_of_it_and_is_not_refused(
    folder: Path, engine: Engine, teller: Speaker | Answerer
) -> None:
    request = engine.make_request(talk(teller, None))
    unbounded = replace(engine.runner.config, running_bytes=None)
    least, most = engine.runner.remembers(request)
    assert 0 < 2 * least < most
    for room, together in ((most - 1, 1), (2 * most - 1, 1), (2 * most, 2)):
        schedule = bounded(unbounded, engine.runner.pipeline, replace(engine.space, room=room))
        with closing(start(config(folder, schedule=schedule))) as tight:
            for id_ in ("one", "other"):
                tight.submit(replace(request, id=id_))
            tick(tight)
            assert len(tight.runner.jobs) == together


IN_TILES = ("WanPipeline-2.1", "HunyuanVideo15Pipeline", "LTX2Pipeline", "ZImagePipeline")


@pytest.mark.costly
@of([family for family in FAMILIES if family.name in IN_TILES])
def test_what_is_decoded_in_tiles_is_tried_in_tiles_that_are_as_large_and_foretold(
    subject: Subject, engine_with: Callable[..., Engine]
) -> None:
    engine = engine_with(decode=DecodeConfig(tile=128))
    frames = subject.family.name != "ZImagePipeline"
    width, height = (512, 384) if frames else (768, 640)
    request = engine.make_request(subject.ask(0, width=width, height=height, output_type="pt"))
    tried = engine.foretelling.extent.smaller(request)
    assert tried is not None and all(each.tile for each in tried)
    if frames:  # which are convolved in other ways where they are narrow
        assert all(128 < max(each.size) <= 320 for each in tried)
        for each in tried:
            assert all(pieces(side) == pieces(whole) for side, whole in zip(each.size, request.size, strict=True))
    else:
        assert [each.size for each in tried] == [(256, 256), (512, 512)], "as is one that is decoded as a whole"
    assert 0.75 < foretold(engine, request) < 1.25


@pytest.mark.costly
@pytest.mark.timeout(300)
@of([family for family in FAMILIES if family.name in IN_TILES])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["on the CPU", "on a second device"])
def test_what_has_no_room_is_what_it_is_in_tiles_of_that_size_that_somebody_chose(
    subject: Subject, engine_with: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """On a device that is not the CPU it is what it is on the CPU, and no step of it, nor tile, makes the host wait."""
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (64, 96))
    ask = subject.ask(0, width=320, height=320, output_type="pt", num_outputs_per_prompt=1)
    chosen = {"schedule": FAST} if elsewhere else {}
    with SecondDevice() if elsewhere else nullcontext() as device:
        engine = engine_with(**chosen) if device is None else moved(engine_with(**chosen), device)
        gc.collect()  # what other tests have left on the device
        tile, room = tightened(engine, engine.make_request(ask))
        found, took = taking(engine, engine.make_request(ask))
        assert tile and took < 1.05 * room
        assert f"decoded in tiles of {tile} pixels a side, as there is no room for more at once" in found.said
        if device is not None:
            submit(engine, ask)
            steps = waits_of_steps(engine.runner, device, ticking(engine))
            assert steps["denoise"] and [waits for each in steps.values() for _, waits in each if waits] == []
    same, whole = (engine_with(decode=DecodeConfig(tile=each), **chosen) for each in (tile, None))
    assert torch.equal(found.output, *run(same, ask))
    assert not torch.equal(found.output, *run(whole, ask))


def tightened(engine: Engine, request: Request) -> tuple[int, int]:
    """The tiles in which `request` takes least, and what it takes, for which alone `engine` has room from now on."""
    takes = dict[int, int]()
    for way in engine.foretelling.extent.ways(request):
        if engine.foretelling.can_learn(way):
            engine.foretelling.learn(way)
            takes[way.tile] = engine.foretelling.takes(way, 0)
    tile = min(takes, key=lambda each: takes[each])
    engine.space = replace(engine.space, room=takes[tile])
    return tile, takes[tile]


PICTURES = (
    "FluxFillPipeline",
    "FluxControlPipeline",
    "FluxKontextPipeline",
    "ZImagePipeline",
    "LongCatImageEditPipeline",
)


@pytest.mark.costly
@of([family for family in FAMILIES if family.name in PICTURES])
@pytest.mark.parametrize("whole", [False, True], ids=["first of all", "after one that is decoded as a whole"])
def test_a_picture_in_tiles_that_is_far_larger_than_those_that_were_tried_is_foretold_whatever_was_tried_before(
    subject: Subject, engine_with: Callable[..., Engine], whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 times the pixels: what encodes a picture is no memory of another trial, and tiles leave no copies."""
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (96, 160))
    engine = engine_with()
    ask = with_params(subject.ask(0), width=640, height=640, output_type="pt", num_outputs_per_prompt=1)
    request = in_tiles(engine, ask)
    if whole:
        engine.foretelling.learn(replace(request, tile=0))
    assert 0.9 < foretold(engine, request) < 1.1


def in_tiles(engine: Engine, ask: Ask) -> Request:
    """One that is decoded in the largest tiles that there are."""
    return engine.foretelling.extent.ways(engine.make_request(ask))[1]


def pieces(side: int) -> set[int]:
    """How wide tiles of 128 pixels are into which a side is cut, one every 96."""
    return {min(128, side - at) for at in range(0, side, 96)}


def foretold(engine: Engine, request: Request) -> float:
    """What `request` is foretold to take, over what it then takes."""

    def draw() -> None:
        engine.submit(request)
        drain(engine)

    engine.foretelling.learn(request)
    took = most_allocated(torch.device("cpu"), draw)
    assert took is not None
    return engine.foretelling.takes(request, 0) / max(took.values())


@pytest.mark.costly("wide frames")
@of([family for family in FAMILIES if family.name == "WanPipeline-2.1-I2V"])
def test_frames_that_are_encoded_as_a_whole_are_foretold_where_they_are_as_wide_as_published_ones(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What encodes has no tiles: with 96 channels no frame of 224 rows is convolved by way of copies."""
    wide = partial(AutoencoderKLWan, base_dim=96, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    monkeypatch.setattr("tests.checkpoints.wan.vae", wide)
    built = replace(subject, folder=subject.family.build(tmp_path / "wide"))
    with closing(start(built.config(decode=DecodeConfig(tile=128)))) as engine:
        ask = with_params(subject.ask(0, width=320, height=320), output_type="latent")
        assert 0.95 < foretold(engine, engine.make_request(ask)) < 1.05


@pytest.mark.costly
@of([family for family in FAMILIES if family.name == "HunyuanVideo15Pipeline"])
def test_a_narrow_last_tile_that_takes_more_than_a_wide_one_is_foretold(
    subject: Subject, engine_with: Callable[..., Engine]
) -> None:
    """Of 17 frames torch convolves tiles of 128 pixels in another way than those of 64, which takes several copies."""
    engine = engine_with(decode=DecodeConfig(tile=128))
    request = engine.make_request(subject.ask(0, width=352, height=352, num_frames=17, output_type="pt"))
    assert 0.9 < foretold(engine, request) < 1.1


@of([family for family in FAMILIES if family.name == "WanPipeline-2.1"])
def test_frames_that_are_so_large_that_they_come_in_tiles_are_tried_in_tiles(shared: Engine, subject: Subject) -> None:
    shared.foretelling.extent.limits = replace(shared.door.limits, max_side=2048)
    request = shared.make_request(subject.ask(0, width=512, height=512, output_type="pt"))
    request = replace(request, params=replace(request.params, width=1312, height=736))
    tried = shared.foretelling.extent.smaller(request)
    assert tried is not None and all(each.tile and max(each.size) <= 256 + 2 * 192 for each in tried)
    shared.submit(tried[1])
    tick(shared)
    [state] = shared.runner.states.values()
    while "decode" not in state.working:
        tick(shared)
    assert len(state.working["decode"].grid.corners) > 1
    shared.cancel(tried[1].id)
    drain(shared)
