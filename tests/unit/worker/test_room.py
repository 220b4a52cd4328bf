"""What weights and forwards take, and requests that never fit: refused with figures and the nearest size that does."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import record_function

import omnimuse
from omnimuse.core.amounts import told_bytes
from omnimuse.core.caches import cache_named
from omnimuse.core.config import (
    CompileConfig,
    Config,
    DecodeConfig,
    HostConfig,
    LoraConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import CapacityError, DeadlineError, MemoryShortageError, RequestCancelled, RequestError
from omnimuse.core.loras import loras_of
from omnimuse.core.machine import memory
from omnimuse.core.output import Event, Failed, Handed
from omnimuse.core.params import DiffusionParams, FamilyParams, GenerationParams
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask, Request
from omnimuse.core.sources import Clip, Picture, Recording
from omnimuse.engine.engine import Engine, try_part
from omnimuse.engine.foretelling import AGAIN, Line
from omnimuse.engine.local import bounded, finished, share, start
from omnimuse.engine.needs import Need
from omnimuse.engine.scheduler import Scheduler
from omnimuse.engine.wearing import try_on
from omnimuse.layers.few import Few, FewLinear
from omnimuse.lora.adapter import Worn
from omnimuse.lora.linear import Rack
from omnimuse.models.bagel.spec import BagelParams
from omnimuse.models.cogview4.spec import CogView4Params
from omnimuse.models.glm_image.spec import GlmImageParams
from omnimuse.models.lumina2.spec import LuminaParams
from omnimuse.models.qwen_image_edit.spec import EditParams
from omnimuse.models.z_image.spec import ZImageParams
from omnimuse.observe.profile import Recorder, allocated, recorded_events
from omnimuse.worker.place import Portion, held_bytes, kept_bytes, most_allocated
from omnimuse.worker.room import Space, brought, few_of, held, lone_blocks, nearest_size
from tests.carrying import carried, three
from tests.checkpoints.adapters import layers_of, peft, write
from tests.checkpoints.families import FAMILIES, WRITERS
from tests.invariants.conftest import Subject, drain, outputs, run, submit, taking, tick, with_params
from tests.second_device import SecondDevice, moved

LARGE = DiffusionParams(width=320, height=320, num_inference_steps=1, seed=1, output_type="pt")


@pytest.fixture(autouse=True)
def small_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried is small, so that little may be asked for."""
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (128, 256))


@pytest.fixture
def subject(tiny: Callable[[str], Path]) -> Subject:
    [family] = [family for family in FAMILIES if family.name == "ZImagePipeline"]
    return Subject(family, tiny(family.name))


def test_the_nearest_size_keeps_proportions_and_the_grid() -> None:
    assert nearest_size((2048, 1024), 16, lambda size: size[0] * size[1] <= 1024 * 512) == (1024, 512)
    assert nearest_size((2048, 1024), 64, lambda size: size[0] * size[1] <= 1000 * 500) == (960, 512)
    assert nearest_size((256, 256), 16, lambda size: False) is None


def test_the_nearest_length_is_the_next_tenth_of_a_second(tiny: Callable[[str], Path]) -> None:
    [family] = [family for family in FAMILIES if family.name == "StableAudioPipeline"]
    with contextlib.closing(start(Subject(family, tiny(family.name)).config())) as engine:
        extent, request = engine.foretelling.extent, engine.make_request(Ask("rain", DiffusionParams(seconds=1.25)))
        assert extent.nearest(request, lambda each: True).hint == "the nearest length that may fit is 1.2 seconds"
        whole = replace(request, params=replace(request.params, seconds=1.2))
        assert extent.nearest(whole, lambda each: True).hint == "the nearest length that may fit is 1.1 seconds"


def test_what_another_process_has_of_a_gpu_is_no_room_and_what_torch_keeps_of_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """80 bytes: 50 of another process, 20 of this one, of which tensors have 12."""
    told = {"mem_get_info": (10, 80), "memory_reserved": 20, "memory_allocated": 12}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert Space.of({}, torch.device("cuda"), torch.bfloat16).room == 10 + 8
    two = Portion(among=2)
    assert Space.of({}, torch.device("cuda"), torch.bfloat16, portion=two).room == 5 + 8, "two pools of one model"


def test_what_is_kept_of_a_gpu_has_what_a_step_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch tells it between two steps: tensors have 12 bytes, and had 20."""
    for name, value in {"memory_reserved": 20, "memory_allocated": 12}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    cuda = torch.device("cuda")
    assert (kept_bytes(cuda), held_bytes(cuda)) == (20, 12)


def test_processes_that_share_a_machine_have_each_their_part_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnimuse.worker.place.memory", lambda: 100)
    monkeypatch.setattr("omnimuse.worker.place.resident", lambda: 10)
    rooms = [Space.of({}, torch.device("cpu"), torch.float32, portion=Portion(count)).room for count in (1, 2, 20)]
    assert rooms == [90, 40, 0]


def test_weights_that_are_packed_when_a_token_is_written_are_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnimuse.worker.place.memory", lambda: 2**30)
    monkeypatch.setattr("omnimuse.worker.place.resident", lambda: 0)
    linear = nn.Linear(512, 256, bias=False).requires_grad_(False)
    size, layer = linear.weight.nbytes, FewLinear(linear, (1,), Few((1,), packed=True))

    def space() -> Space:
        return Space.of({"network": layer}, torch.device("cpu"), torch.float32)

    assert space().weights == {"network": (2 * size, 0)} and space().room == 2**30 - size
    layer(torch.zeros(1, 1, 512))
    assert space().weights == {"network": (2 * size, 0)} and space().room == 2**30, "they are of what is resident then"


def test_workers_of_one_machine_may_take_half_of_it_each(subject: Subject) -> None:
    rooms = []
    for processes in (1, 2):
        config = replace(subject.config(), host=HostConfig(processes=processes, threads=1))
        with contextlib.closing(start(config)) as engine:
            assert engine.space.room is not None
            rooms.append(engine.space.room)
    assert rooms[1] <= rooms[0] - memory() // 3


def test_workers_that_come_and_go_take_no_room_of_those_that_stay(subject: Subject) -> None:
    config = replace(subject.config(), host=HostConfig(processes=8, replicas=1, threads=1))
    with contextlib.closing(start(config)) as engine:
        assert engine.space.room is not None and engine.space.room > memory() // 4
    ranks = replace(config, parallel=ParallelConfig(cfg=2))
    assert [each.sharing for each in (config, ranks, replace(ranks, host=HostConfig(processes=8)))] == [1, 2, 8]
    few = replace(ranks.host, processes=3, replicas=4)
    assert replace(ranks, host=few).sharing == 3, "of an agent's machine, which has so many seats"


def test_processes_of_pools_share_the_machine_that_they_are_on() -> None:
    three = [PoolConfig(name, (name,), connector="tcp") for name in "abc"]
    pools = (replace(three[0], replicas=2), replace(three[1], parallel=ParallelConfig(cfg=2)), three[2])
    away = replace(three[0], name="d", stages=("d",), replicas=3, elsewhere=True)
    config = Config(SHAPES, deploy=DeployConfig((*pools, away)))

    def sharing(pool: str, processes: int, replicas: int | None = None) -> int:
        ranks = ParallelConfig(cfg=2) if pool == "b" else ParallelConfig()
        host, deploy = HostConfig(processes=processes, replicas=replicas), replace(config.deploy, pool=pool)
        return replace(config, host=host, deploy=deploy, parallel=ranks).sharing

    assert [sharing("a", 1), sharing("b", 2), sharing("c", 1)] == [5, 5, 5], "two, two ranks and one"
    assert [sharing("a", 8, 2), sharing("b", 16, 2)] == [10, 10], "of two groups that stay"
    assert [sharing("d", 1), sharing("d", 2, 1), sharing("d", 8, 1)] == [1, 2, 3], "as many as an agent has seats"


@pytest.mark.parametrize("said", [None, 2**20])
def test_what_others_of_a_group_hold_is_no_room_and_the_rest_is_divided(
    said: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("omnimuse.worker.place.memory", lambda: 64 * 2**30)
    monkeypatch.setattr("omnimuse.worker.place.resident", lambda: 2 * 2**30)
    model = ModelConfig(str(WRITERS[0].build(tmp_path / "model")), dtype="float32", device="cpu")
    config = Config(model, host=HostConfig(threads=1, room=said))
    with contextlib.closing(start(config)) as engine:
        parts = [part for part in engine.runner.pipeline.ctx.components.values() if isinstance(part, nn.Module)]
        packed = sum(layer.unmade for part in parts for layer in few_of(part))
        assert engine.space.room == (62 * 2**30 - packed if said is None else said)
        share(engine, config, Portion(2, 6 * 2**30, 3))
        room = 8 * 2**30 - packed if said is None else said
        assert engine.space.room == room, "of half of it, beside 6 GiB of others and 2 GiB of its own"
        kept, most = engine.runner.config.running_bytes, min(room, 4 * 2**30)
        assert kept == engine.scheduler.config.running_bytes == most, "what may be remembered changes with it"


def test_room_counts_as_it_is_said_but_of_a_gpu_no_more_than_is_free() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [Space(50).within(80, device).room for device in (cpu, cuda)] == [80, 50]
    assert [Space(50).within(20, device).room for device in (cpu, cuda)] == [20, 20]
    assert [Space(50).within(None, device).room for device in (cpu, cuda)] == [50, 50]


def test_half_of_the_room_that_is_said_is_there_for_what_is_remembered(tmp_path: Path) -> None:
    """Whatever a machine of a million processes leaves each."""
    model = ModelConfig(str(WRITERS[0].build(tmp_path / "model")), dtype="float32", device="cpu")
    config = Config(model, host=HostConfig(threads=1, processes=10**6, room=2**30))
    with contextlib.closing(start(config)) as engine:
        assert (engine.space.room, engine.runner.config.running_bytes) == (2**30, 2**29)


@pytest.mark.parametrize(
    ("name", "learnt", "alike", "other"),
    [
        ("images", Picture(32, 32, b""), Picture(30, 30, b""), Picture(64, 64, b"")),
        ("videos", Clip(32, 32, (b"",) * 8), Clip(32, 32, (b"",) * 7), Clip(32, 32, (b"",) * 9)),
        ("sounds", Recording(1, 1, bytes(64)), Recording(1, 1, bytes(60)), Recording(1, 1, bytes(66))),
    ],
)
def test_what_is_shown_something_much_larger_is_of_another_kind(
    subject: Subject, name: str, learnt: object, alike: object, other: object
) -> None:
    with contextlib.closing(start(subject.config())) as engine:
        request: Any = engine.make_request(large(subject))
        engine.foretelling.learn(replace(request, **{name: (learnt,)}), lambda small: False)
        assert not engine.foretelling.can_learn(replace(request, **{name: (alike,)}))
        assert engine.foretelling.can_learn(replace(request, **{name: (other,)}))


@pytest.mark.parametrize("why", ["cancelled", "late", "stopping"])
def test_small_ones_are_drawn_no_longer_than_somebody_waits_for_them(subject: Subject, why: str) -> None:
    with contextlib.closing(start(subject.config())) as engine:
        request = replace(engine.make_request(large(subject)), deadline=5.0)
        engine.space = replace(engine.space, room=2**20 + engine.runner.working(request, engine.space.tokens))
        now, steps = [0.0], list[int]()
        engine.clock = lambda: now[0]

        def moved() -> None:
            steps.append(1)
            if why == "cancelled":
                engine.cancel(request.id)
            now[0], engine.stopping = (6.0 if why == "late" else 0.0), why == "stopping"

        engine.moved = moved
        engine.submit(request)
        assert engine.tick() == [] and steps == [1]
        assert engine.foretelling.can_learn(request) and not engine.runner.jobs, "nothing was learnt, and nobody begins"
        ended = [event.error for event in engine.tick() if isinstance(event, Failed)] if why != "stopping" else []
        kinds = {"cancelled": [RequestCancelled], "late": [DeadlineError], "stopping": []}
        assert [type(error) for error in ended] == kinds[why]


def test_while_small_ones_are_drawn_another_of_their_kind_is_not_refused_by_a_guess(subject: Subject) -> None:
    with contextlib.closing(start(subject.config())) as engine:
        request, came = engine.make_request(large(subject)), list[str]()
        engine.space = replace(engine.space, room=2**20 + engine.runner.working(request, engine.space.tokens))

        def draw(small: Request) -> bool:
            assert engine.foretelling.doubts(request, engine.space.room), "it is not known yet"
            came.append(engine.submit(replace(request, id=f"other {len(came)}")))
            return False

        engine.foretelling.learn(request, draw)
        assert came == ["other 0"]


def test_what_cannot_be_worn_leaves_its_kind_to_be_learnt(subject: Subject, tmp_path: Path) -> None:
    def style(name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
        return peft()(name, down * 1e19, up * 1e19)

    strong = write(tmp_path / "strong.safetensors", layers_of(subject.folder), style)
    with contextlib.closing(start(subject.config())) as engine:
        request = engine.make_request(large(subject))
        engine.space = replace(engine.space, room=2**20 + engine.runner.working(request, engine.space.tokens))
        for file in (str(tmp_path / "nowhere.safetensors"), str(strong)):
            engine.submit(wearing(request, "bad", file))
            [ended] = [event for event in drain(engine) if isinstance(event, Failed)]
            assert isinstance(ended.error, RequestError), "small ones, which tell that it never fits, wear nothing"
        assert engine.foretelling.knows(request)


def test_of_kinds_without_end_the_latest_are_known(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnimuse.engine.foretelling.MOST_KINDS", 2)
    engine = start(subject.config())
    large = Ask("a fox", LARGE)
    kinds = [
        engine.make_request(with_params(large, output_type=output, guidance_scale=scale))
        for output in ("pt", "latent")
        for scale in (0.0, 4.0)
    ]
    for request in kinds:
        engine.foretelling.learn(request, lambda small: False)
    assert [engine.foretelling.can_learn(request) for request in kinds] == [True, True, False, False]
    assert engine.foretelling.kinds == 4
    engine.close()


@pytest.mark.parametrize(
    ("extra", "alike", "other"),
    [
        (ZImageParams(cfg_normalization=2.5), ZImageParams(cfg_normalization=1.5), ZImageParams(cfg_normalization=0.0)),
        (EditParams(), EditParams(), EditParams(shown_area=32 * 32)),
        (LuminaParams("Be brief."), LuminaParams("Be kind."), LuminaParams(cfg_normalization=False)),
        (GlmImageParams((1, 2)), GlmImageParams(), None),
        (CogView4Params((64, 64)), CogView4Params(), None),
        (GenerationParams(stop=("end",)), GenerationParams(temperature=0.5, max_tokens=8), None),
        (BagelParams(think=True), BagelParams(think=True, top_p=0.5), BagelParams()),
    ],
)
def test_choices_that_take_no_memory_make_no_kind_of_their_own(
    subject: Subject, extra: FamilyParams, alike: FamilyParams, other: FamilyParams | None
) -> None:
    with contextlib.closing(start(subject.config())) as engine:
        request = engine.make_request(Ask("a fox", LARGE))
        engine.foretelling.learn(replace(request, extra=extra), lambda small: False)
        assert not engine.foretelling.can_learn(replace(request, extra=alike))
        assert other is None or engine.foretelling.can_learn(replace(request, extra=other))


def limited(subject: Subject, room: int) -> Engine:
    engine = start(subject.config())
    engine.space = replace(engine.space, room=room)
    return engine


def test_a_request_that_never_fits_is_told_how_much_it_takes_and_which_size_is_nearest(subject: Subject) -> None:
    engine = limited(subject, 2**40)
    asked = with_params(subject.ask(0), width=1024, height=512, output_type="latent")
    needed = engine.runner.working(engine.make_request(asked), engine.space.tokens)
    assert needed > 0
    engine.space = replace(engine.space, room=needed * 3 // 4)
    [refused] = submit(engine, asked)  # nobody knows yet what to ask for instead
    with pytest.raises(RequestError, match=r"1024x512 takes .* at the least beside the weights, of which") as caught:
        outputs(drain(engine), refused)
    found = re.search(r"nearest size that may fit is (\d+)x(\d+)", str(caught.value))
    assert found
    width, height = map(int, found.groups())
    assert 128 <= width < 1024 and abs(width - 2 * height) <= 2 * engine.door.limits.size_multiple
    [named] = submit(engine, with_params(asked, width=width, height=height))
    assert len(outputs(drain(engine), named)) == 1
    larger = with_params(asked, width=width + 2 * engine.door.limits.size_multiple, height=height)
    with pytest.raises(RequestError):
        engine.submit(engine.make_request(replace(larger, params=replace(larger.params, height=height * 2))))
    engine.close()


@pytest.mark.parametrize(
    ("fewer", "more", "foretold"),
    [
        pytest.param(10, 40, 160, id="by pixels"),
        pytest.param(30, 40, 40 + 10 * 4, id="much of it is the same for every size"),
        pytest.param(90, 40, 40, id="never less than was seen"),
    ],
)
def test_what_two_sizes_took_foretells_what_a_larger_one_takes(fewer: int, more: int, foretold: int) -> None:
    assert Line((100, fewer), (400, more)).at(1600) == foretold


def large(subject: Subject, side: int = 448) -> Ask:
    return with_params(subject.ask(0), width=side, height=side)


def least(engine: Engine, ask: Ask) -> int:
    return engine.runner.working(engine.make_request(ask), engine.space.tokens)


def test_what_might_not_fit_is_tried_small_before_it_begins_and_others_notice_nothing(subject: Subject) -> None:
    engine = start(subject.config())
    [alone] = run(engine, subject.ask(1))
    engine.space = replace(engine.space, room=2**20 + least(engine, large(subject)))
    moved: list[None] = []
    engine.moved = lambda: moved.append(None)
    [small] = submit(engine, subject.ask(1))
    events = tick(engine)
    [refused] = submit(engine, large(subject))
    events += drain(engine)
    assert len(moved) > 2, "whoever looks whether the engine stands still is told of every step"
    assert torch.equal(outputs(events, small), alone)
    with pytest.raises(RequestError, match="nearest size that may fit is") as caught:
        outputs(events, refused)
    assert {event.request_id for event in events} == {small, refused}, "nobody hears of what is tried"
    found = re.search(r"nearest size that may fit is (\d+)x", str(caught.value))
    assert found
    with pytest.raises(RequestError, match="at the least"):  # it is known now, at the door
        submit(engine, large(subject))
    engine.submit(engine.make_request(large(subject, int(found[1]))))
    engine.close()


def test_where_small_ones_cannot_be_drawn_nothing_is_foretold(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(subject.config())
    tried: list[str] = []

    def cannot(request: Request) -> bool:
        tried.append(request.id)
        return False

    monkeypatch.setattr(engine.foretelling, "_draw", cannot)
    engine.space = replace(engine.space, room=2**20 + least(engine, large(subject)))
    for _ in range(2):
        submit(engine, large(subject))
        drain(engine)
    assert len(tried) == 1, "once for each kind"
    engine.close()


def refuses(*names: object, **settings: object) -> Any:
    """A disk that has no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


def writes_half(self: torch.profiler.profile, path: str) -> None:
    Path(path).write_text('{"traceEvents": [')


def has_no_room(error: Exception, request: Request, came: object = (), wanted: object = None) -> list[Event]:
    return [Failed(request.id, error)]


@pytest.mark.parametrize("why", ["no folder", "half a trace", "recorded", "another recorded", "memory", "adapters"])
def test_a_request_begins_of_whose_kind_nothing_can_be_told_just_now_and_small_ones_are_drawn_later(
    why: str, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    another, seconds = Recorder(), [0.0]
    with (
        contextlib.closing(start(subject.config())) as engine,
        monkeypatch.context() as now,
        ThreadPoolExecutor(1) as elsewhere,
    ):
        engine.clock = lambda: seconds[0]
        request = engine.make_request(large(subject))
        engine.space = replace(engine.space, room=engine.foretelling.extent.guess(request).most - 1)
        if why == "no folder":
            now.setattr("omnimuse.observe.profile.TemporaryDirectory", refuses)
        elif why == "half a trace":
            now.setattr(torch.profiler.profile, "export_chrome_trace", writes_half)
        elif why == "recorded":
            engine.recordings.begin()
        elif why == "another recorded":
            elsewhere.submit(another.start).result()
        else:
            error = MemoryShortageError("out of memory") if why == "memory" else CapacityError("others wear too much")
            now.setattr(engine, "alone", partial(has_no_room, error))
        assert len(finished(engine, request)) == 1
        if why == "recorded":
            engine.recordings.end(subject.folder / "trace.json.gz")
        elif why == "another recorded":
            elsewhere.submit(another.drop).result()
        now.undo()
        assert not engine.foretelling.knows(request) and not engine.foretelling.can_learn(request), "for a while"
        seconds[0] += AGAIN
        assert engine.foretelling.can_learn(request)
        finished(engine, replace(request, id="later"))
        assert engine.foretelling.knows(request)


def test_a_pool_tries_again_what_the_one_before_could_not_draw_just_then(subject: Subject) -> None:
    with contextlib.closing(start(subject.config())) as engine:
        request, before = engine.make_request(large(subject)), engine.clock()
        assert try_part(engine, request, None) == [[], []]
        assert not engine.foretelling.can_learn(request), "the front does not ask for ever"
        engine.clock = lambda: before + 2 * AGAIN
        assert engine.foretelling.can_learn(request)


def test_what_was_passed_over_for_smaller_tiles_of_which_nothing_could_be_learnt_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ModelConfig("omnimuse/shapes-film", dtype="float32", device="cpu")
    with contextlib.closing(start(Config(model, decode=DecodeConfig(tile=256)))) as engine:
        sized = DiffusionParams(width=288, height=288, num_frames=5, num_inference_steps=1)
        request, space = engine.make_request(Ask("a red circle", sized)), replace(engine.space, room=2**24)
        usual, *smaller = engine.foretelling.extent.ways(request)
        assert not engine.foretelling.can_learn(usual) and any(map(engine.foretelling.can_learn, smaller))
        monkeypatch.setattr(engine.foretelling, "_draw", lambda request: False)
        assert engine.fitting.first_way(request, space) == usual, "and nothing is known of what it needs"


def test_what_is_foretold_is_what_torch_allocates_for_it() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    request = engine.make_request(Ask("a red circle", DiffusionParams(width=640, height=512, num_inference_steps=2)))

    def draw() -> None:
        engine.submit(request)
        drain(engine)

    engine.foretelling.learn(request)
    took = most_allocated(torch.device("cpu"), draw)
    most = max((took or {}).values())
    assert most > 50 * 2**20
    assert 0.95 * most < engine.foretelling.takes(request, 0) < 1.05 * most
    assert engine.foretelling.takes(request, 2**20) == engine.foretelling.takes(request, 0) - 2**20, "weights wait"
    engine.close()


def test_what_a_device_counts_foretells_by_stage_what_is_recorded_on_the_cpu() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    request = engine.make_request(Ask("a red circle", LARGE))
    engine.foretelling.learn(request)
    recorded = engine.foretelling.needs(request, 0)
    with SecondDevice() as device:
        there = moved(engine, device)
        there.foretelling.learn(request)
    counted = there.foretelling.needs(request, 0)
    assert counted.beside == pytest.approx(recorded.beside, rel=0.02)
    assert counted.beyond == pytest.approx(recorded.beyond, rel=0.02) and counted.beyond > counted.beside


def test_what_weights_take_is_told_by_component_and_by_block_where_blocks_come_in(
    subject: Subject, tmp_path: Path
) -> None:
    plain = start(subject.config())
    networks = {name: plain.runner.pipeline.ctx.components[name] for name in plain.space.weights}
    for name, (whole, block) in plain.space.weights.items():
        assert isinstance(networks[name], nn.Module)
        assert whole == sum(each.nbytes for each in {*networks[name].parameters(), *networks[name].buffers()}), name
        assert block == 0
    layers = start(subject.config(offload=OffloadConfig("layers", tmp_path)))
    for name, (whole, block) in layers.space.weights.items():
        assert whole == plain.space.weights[name][0]
        assert (0 < block < whole) == (name in ("transformer", "text_encoder")), name  # a library's, too
    network = layers.runner.pipeline.ctx.components.wherever("transformer")
    blocks = [held(block) for block in lone_blocks(network)]
    whole = held(network)
    assert brought(plain.runner.pipeline.ctx.components["transformer"], []) == 0, "it is all there"
    assert brought(network, []) == whole, "that of weights which wait as one, none of which is there"
    assert brought(network, lone_blocks(network)) == whole - sum(blocks) + max(blocks)
    plain.close()
    layers.close()


def test_rows_that_have_no_room_beside_others_wait_for_the_next_tick(subject: Subject) -> None:
    engine = start(subject.config())
    asks = [subject.ask(0) for _ in range(3)]
    requests = [engine.make_request(ask) for ask in asks]
    row = engine.runner.tokens(requests[0])
    token = max(engine.space.tokens.values())
    together = {}
    for rows in (3, 1):
        space = replace(engine.space, room=rows * row * token)
        schedule = bounded(engine.runner.config, engine.runner.pipeline, space)
        assert schedule.tick_tokens == rows * row
        scheduler = Scheduler(schedule)
        for request in requests:
            scheduler.add(request, row, 0.0)
        together[rows] = len(scheduler.pick(0.0, lambda state_id: None).run)
    assert together == {3: 3, 1: 1}
    assert bounded(engine.runner.config, engine.runner.pipeline, Space()) == engine.runner.config
    engine.close()


@pytest.mark.costly("room")
def test_what_has_no_room_as_a_whole_is_decoded_in_tiles_and_says_so() -> None:
    model = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")
    ask = Ask("a red circle", replace(LARGE, width=640, height=640))
    short = start(Config(model, host=HostConfig(room=80 * 2**20)))
    assert short.space.room == 80 * 2**20
    found = [finished(short, short.make_request(ask))[0] for _ in range(2)]  # it is not known before, and then it is
    tiled = start(Config(model, decode=DecodeConfig(tiling=True)))
    [expected] = finished(tiled, tiled.make_request(ask))
    for each in found:
        assert torch.equal(each.output, expected.output)
        assert each.said == ("decoded in tiles of 128 pixels a side, as there is no room for more at once",)
    assert expected.said == ()
    small = replace(ask, params=replace(LARGE, width=256, height=256))
    assert finished(short, short.make_request(small))[0].said == (), "there is room for it as a whole"
    short.close()
    tiled.close()


SHAPES = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")


@pytest.mark.costly("room")
def test_what_has_no_room_is_decoded_in_the_largest_tiles_that_have_and_no_larger_picture_is_offered_than_fits(
    subject: Subject,
) -> None:
    asked = with_params(large(subject, 320), output_type="pt", num_outputs_per_prompt=1)
    engine = start(subject.config(decode=DecodeConfig(tile=256), host=HostConfig(room=2**20)))
    with pytest.raises(RequestError, match="no size of it fits"):
        run(engine, asked)
    assert engine.foretelling.kinds == 3, "small ones were tried in all tiles"
    ways = engine.foretelling.extent.ways(engine.make_request(asked))
    takes = {way.tile: engine.foretelling.takes(way, 0) for way in ways}
    assert [*takes] == [0, 128, 64] and takes[0] > takes[128] > takes[64]
    latents = engine.make_request(with_params(asked, output_type="latent"))
    assert engine.foretelling.extent.ways(latents) == [latents], "they are not decoded"
    for tile in (128, 64):
        engine.space = replace(engine.space, room=(room := takes[tile]))
        found, took = taking(engine, engine.make_request(asked))
        assert 0.9 * room < took < 1.05 * room
        assert f"decoded in tiles of {tile} pixels a side, as there is no room for more at once" in found.said
        with contextlib.closing(start(subject.config(decode=DecodeConfig(tile=tile)))) as chosen:
            assert torch.equal(found.output, *run(chosen, asked))
    with pytest.raises(RequestError, match="the nearest size that may fit is") as caught:
        run(engine, with_params(asked, width=448, height=448))
    [side] = re.findall(r"fit is (\d+)x", str(caught.value))
    named, took = taking(engine, engine.make_request(with_params(asked, width=int(side), height=int(side))))
    assert took < 1.05 * room and int(side) >= 320
    assert "decoded in tiles of 64 pixels a side, as there is no room for more at once" in named.said
    engine.close()


@pytest.mark.costly("room")
def test_a_whole_row_of_tiles_that_waits_for_the_next_is_foretold(subject: Subject) -> None:
    asked = with_params(large(subject, 512), output_type="pt", num_outputs_per_prompt=1)
    with contextlib.closing(start(subject.config(decode=DecodeConfig(tile=256)))) as engine:
        request = engine.make_request(asked)
        engine.foretelling.learn(request)
        _, took = taking(engine, request)
        assert 0.93 * took < engine.foretelling.takes(request, 0) < 1.05 * took


def test_tiles_that_are_nearly_as_large_as_a_picture_are_tried_by_one_that_is_smaller() -> None:
    with contextlib.closing(start(Config(SHAPES, decode=DecodeConfig(tile=512)))) as engine:
        request = engine.make_request(Ask("a red circle", replace(LARGE, width=640, height=640)))
        tried = engine.foretelling.extent.smaller(request)
        assert tried is not None and tried[1].tile == 512 < max(tried[1].size)
        sizes = [engine.foretelling.extent.of(each) for each in (*tried, request)]
        assert sizes == sorted(set(sizes))


def test_what_came_before_its_kind_was_known_is_refused_when_it_would_begin(subject: Subject) -> None:
    engine = limited(subject, 2**40)
    engine.space = replace(engine.space, room=2**20 + least(engine, large(subject)))
    ids = submit(engine, large(subject), large(subject))
    events = drain(engine)
    for id_ in ids:
        with pytest.raises(RequestError, match="nearest size that may fit is"):
            outputs(events, id_)
    assert [tenant.served for tenant in engine.scheduler.tenants.values()] == [0], "nobody pays for what was not done"
    assert engine.scheduler.alone(engine.make_request(large(subject)), 1) is None, "nor is it a measure"
    engine.close()


def test_a_request_that_has_no_room_beside_another_waits_for_its_turn(subject: Subject) -> None:
    asks, together = [subject.ask(0), subject.ask(0)], start(subject.config())
    expected = run(together, *asks)
    row = together.runner.working(together.make_request(asks[0]), together.space.tokens)
    apart = start(subject.config(host=HostConfig(room=row * 3 // 2)))
    assert all(map(torch.equal, run(apart, *asks), expected))
    assert apart.runner.forwards.count > together.runner.forwards.count, "each row has a forward of its own"
    never = start(subject.config(host=HostConfig(room=row // 2)))
    with pytest.raises(RequestError, match="at the least"):
        submit(never, asks[0])
    for engine in (together, apart, never):
        engine.close()


@pytest.mark.costly("room")
@pytest.mark.parametrize("outputs", [1, 2], ids=["two requests", "two outputs of one"])
@pytest.mark.parametrize(
    ("output", "part", "forwards"),
    [("latent", 0.6, 4), ("latent", 0.4, 2), ("pt", 0.9, 4), pytest.param("pt", 0.6, 2, id="decoded one at a time")],
)
def test_two_step_together_only_where_what_is_foretold_of_both_has_room(
    outputs: int, output: str, part: float, forwards: int
) -> None:
    engine = start(
        Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always"))
    )
    params = replace(LARGE, num_inference_steps=2, num_outputs_per_prompt=outputs, output_type=output)
    request = engine.make_request(Ask("a red circle", params))
    others = [replace(request, id=f"{request.id}{index}") for index in range(2 // outputs)]

    def draw() -> None:
        finished(engine, *others)

    engine.space = replace(engine.space, room=engine.foretelling.extent.guess(request).most * outputs)
    finished(engine, request)
    assert not engine.foretelling.kinds, "nothing is tried where there is room by any guess"
    engine.foretelling.learn(request)
    engine.space = replace(engine.space, room=int(engine.foretelling.takes(request, 0) / part))
    engine.runner.forwards.count = 0
    took = most_allocated(torch.device("cpu"), draw)
    assert engine.runner.forwards.count == forwards
    assert took is not None and engine.space.room is not None
    assert max(took.values()) < engine.space.room * 1.02, "foretold to the percent"
    engine.close()


def test_finished_outputs_are_counted_as_what_torch_has_for_them_while_others_are_drawn() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    params = replace(LARGE, num_inference_steps=2, num_outputs_per_prompt=2)
    request = engine.make_request(Ask("a red circle", params))
    engine.foretelling.learn(request)
    engine.space = replace(engine.space, room=engine.foretelling.takes(request, 0))
    kept: list[int] = []

    def draw() -> None:
        engine.submit(request)
        entry = engine.scheduler.entries[request.id]
        while len(entry.live) > 1 or not engine.runner.states[entry.live[0]].position:
            tick(engine)
        engine.runner.memo.clear()  # it has what was read
        kept.extend((entry.kept.finished, engine.runner.keeps(request.id)))
        engine.cancel(request.id)
        with record_function("gone"):
            tick(engine)

    events = recorded_events(draw)
    [gone] = [float(each["ts"]) for each in events if each.get("name") == "gone" and "dur" in each]
    back = -sum(size for at, size in allocated(events) if at >= gone)
    assert kept[0] == 2 * 3 * 320 * 320 * 4, "both have their places when the first is there"
    assert sum(kept) == pytest.approx(back, rel=0.02)
    engine.close()


TEXT = 2**20
"""Bytes of a text that is remembered."""


def read(engine: Engine, texts: int) -> None:
    """So many are remembered that nobody in progress reads."""
    for number in range(texts):
        engine.runner.memo.put(("read", number), (torch.zeros(TEXT, dtype=torch.uint8),))


def known_to(engine: Engine, **choices: object) -> tuple[Request, Need]:
    """One of a kind of which small ones were drawn, and what it needs."""
    chosen: dict[str, Any] = {"num_inference_steps": 2, **choices}
    request = engine.make_request(Ask("a red circle", replace(LARGE, **chosen)))
    engine.foretelling.learn(request)
    return request, engine.foretelling.needs(request, 0)


@pytest.mark.costly(turns=3)
def test_two_whose_step_caches_have_no_room_beside_each_other_are_drawn_one_after_the_other() -> None:
    engine = start(Config(SHAPES, schedule=ScheduleConfig(company="always")))
    known = [
        known_to(engine, output_type="latent", num_inference_steps=8, cache=cache)
        for cache in (None, "taylorseer,order=4,last=0,threshold=9")
    ]
    (_, plain), (_, need) = known
    room = need.times(2).most - 1
    assert plain.times(2).most <= room, "there is room for two without one"
    engine.space, forwards = replace(engine.space, room=room), list[int]()

    def draw() -> None:
        for request, _ in known:
            engine.runner.forwards.count = 0
            finished(engine, *(replace(request, id=id_) for id_ in ("one", "other")))
            forwards.append(engine.runner.forwards.count)

    took = most_allocated(torch.device("cpu"), draw)
    assert forwards == [8, 16]
    assert took is not None and max(took.values()) < room * 1.02
    engine.close()


def test_the_step_cache_of_all_who_choose_none_makes_the_kind_of_theirs(subject: Subject) -> None:
    chosen, words = "dbcache,threshold=9,first=1", ("dbcache,threshold=9,mask=fast", "careful", "none")
    with contextlib.closing(start(subject.config(cache=cache_named(words[0])))) as engine:
        ask = with_params(large(subject), num_inference_steps=12, output_type="latent")
        request = engine.make_request(ask)
        engine.foretelling.learn(request)
        assert engine.foretelling.knows(request), "the mask is for other numbers of steps than those that are tried"
        alike, other, none = (engine.make_request(with_params(ask, cache=each)) for each in (chosen, *words[1:]))
        assert engine.foretelling.knows(alike)
        assert not engine.foretelling.knows(other) and not engine.foretelling.knows(none)


RANK = 64
BEGIN = ("encode prompt", "encode negative prompt", "encode image", "draw image latents", "init latents")
BEGINNING = DeployConfig((PoolConfig("begin", (*BEGIN, "denoise")), PoolConfig("rest", ("*",))), pool="begin")
THREE = DeployConfig((PoolConfig("begin", BEGIN), PoolConfig("draw", ("denoise",)), PoolConfig("rest", ("*",))))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], int]:
    """Two of the demo model, and the bytes that each takes."""
    home, layers = tmp_path_factory.mktemp("adapters"), layers_of(Path(omnimuse.__file__).parent / "bundled" / "shapes")
    files = [str(write(home / f"{seed}.safetensors", layers, seed=seed, rank=RANK)) for seed in (1, 2)]
    return files, sum(4 * RANK * (inputs + outputs) for outputs, inputs in layers.values())


def in_company(engine: Engine, *requests: Request) -> int:
    """How many of them are in progress at once at most."""
    most = 0
    for request in requests:
        engine.submit(request)
    while not engine.idle:
        events = tick(engine)
        assert not any(isinstance(event, Failed) for event in events)
        most = max(most, len(engine.runner.jobs))
    return most


def wearing(request: Request, id_: str, *files: str) -> Request:
    return replace(request, id=id_, params=replace(request.params, loras=loras_of(files)))


def test_an_adapter_takes_what_torch_has_for_it_once_it_was_read(adapters: tuple[list[str], int]) -> None:
    """It kept the whole file, which was mapped."""
    files, size = adapters
    with contextlib.closing(start(Config(SHAPES))) as engine:
        events = recorded_events(lambda: try_on(engine, loras_of(files) or ()))
        took = sum(bytes_ for _, bytes_ in allocated(events))
        assert engine.runner.pipeline.ctx.adapters.nbytes == 2 * size == pytest.approx(took, rel=0.01)


def test_compiled_layers_have_what_is_worn_joined_as_foretold(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny("FluxPipeline-dev")
    layers = {name: size for name, size in layers_of(folder).items() if ".attn." in name}
    files = [str(write(tmp_path / f"{rank}.safetensors", layers, seed=rank, rank=rank)) for rank in (8, 16)]
    model = ModelConfig(str(folder), dtype="float32", device="cpu")
    with contextlib.closing(start(Config(model, compile=CompileConfig("blocks")))) as engine:
        adapters = engine.runner.pipeline.ctx.adapters
        for loras in (loras_of(files[:1]), loras_of(files)):
            worn, rack = adapters.fetch(loras), adapters._rack
            rack.forget()

            def join(worn: tuple[Worn, ...] = worn, rack: Rack = rack) -> None:
                with adapters.wearing(worn), rack.joining():
                    pass

            took = sum(bytes_ for _, bytes_ in allocated(recorded_events(join)))
            assert rack.nbytes == pytest.approx(took, rel=0.02)
            assert rack.nbytes <= adapters.joined(loras) < 1.2 * rack.nbytes
            assert len(worn) > 1 or adapters.joined(loras) == rack.nbytes > 2 * adapters.nbytes, "parts are fused here"


def test_only_the_pool_that_has_compiled_layers_counts_what_they_have_joined(
    adapters: tuple[list[str], int],
) -> None:
    [lora] = loras_of(adapters[0][:1]) or ()
    with contextlib.closing(start(Config(SHAPES))) as engine:
        deploy = three(engine.runner.pipeline.stages)
    joined = dict[str, int]()
    for pool in deploy.pools:
        chosen = Config(SHAPES, compile=CompileConfig("blocks"), deploy=replace(deploy, pool=pool.name))
        with contextlib.closing(start(chosen)) as engine:
            ctx = engine.runner.pipeline.ctx
            ctx.adapters.fetch([lora])
            joined["transformer" if "transformer" not in ctx.lent else pool.name] = ctx.adapters.joined([lora])
    assert joined.pop("transformer") > 0 and [*joined.values()] == [0, 0]


@pytest.mark.parametrize("deploy", [DeployConfig(), BEGINNING], ids=["whole", "pool"])
def test_who_has_no_room_for_what_it_wears_beside_others_waits_and_is_drawn(
    adapters: tuple[list[str], int], deploy: DeployConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (one, other), size = adapters
    lora, schedule = LoraConfig(memory=size * 3 // 2), ScheduleConfig(company="always")
    caplog.set_level("INFO", "omnimuse")
    with contextlib.closing(start(Config(SHAPES, lora=lora, schedule=schedule, deploy=deploy))) as engine:
        request = engine.make_request(Ask("a red circle", replace(LARGE, width=64, height=64, num_inference_steps=3)))
        for _ in range(2):  # of unknown sizes, and of known ones
            pair = wearing(request, "first", one), wearing(request, "second", other)
            assert in_company(engine, *pair) == 1, "neither failed"
            said = [record.message for record in caplog.records if "waits for others" in record.message]
            takes, most = told_bytes(size), told_bytes(lora.memory)
            assert said == [f"request second wears {takes}, and waits for others, which wear {takes} of {most}"]
            caplog.clear()
        engine.submit(wearing(request, "paused", one))
        tick(engine)
        engine.pause("paused")
        engine.submit(wearing(request, "waits", other))
        assert not any(isinstance(event, Failed) for _ in range(4) for event in engine.tick())
        assert engine.idle, "nobody asks again and again"
        engine.resume("paused")
        assert in_company(engine) == 1
        with pytest.raises(RequestError, match=r"the 2 adapters take .* together"):
            engine.submit(wearing(request, "both", one, other))


def test_adapters_take_room_once_while_they_are_worn_and_none_while_nobody_wears_them(
    adapters: tuple[list[str], int],
) -> None:
    (one, other), size = adapters
    engine = start(Config(SHAPES, schedule=ScheduleConfig(company="always")))
    request, need = known_to(engine, output_type="latent")
    room, found = need.times(2).most + size + TEXT, list[int]()
    engine.space, kept = replace(engine.space, room=room), engine.runner.pipeline.ctx.adapters

    def draw() -> None:
        for first, second in ((one, other), (one, one), (other, other)):
            found.append(in_company(engine, wearing(request, "first", first), wearing(request, "second", second)))
        found.append(in_company(engine, wearing(request, "first"), wearing(request, "second")))

    took = most_allocated(torch.device("cpu"), draw)
    assert found == [1, 2, 2, 2]
    assert took is not None and max(took.values()) < room * 1.05
    assert kept.nbytes == size, "there is room for one that nobody wears"
    assert engine.fitting.first_way(wearing(request, "told", one), engine.space).needs == need.most + size
    engine.space = replace(engine.space, room=need.times(2).most)
    assert in_company(engine, wearing(request, "first"), wearing(request, "second")) == 2
    assert kept.nbytes == 0
    engine.space = replace(engine.space, room=need.most + size - 1)
    with pytest.raises(
        RequestError, match=r"at the least .* of it for its adapters, .* without its adapters it may fit"
    ):
        engine.submit(wearing(request, "never", one))
    engine.space = replace(engine.space, room=need.most)
    with pytest.raises(RequestError) as never:
        engine.submit(wearing(request, "two", one, other))
    assert "no size" not in str(never.value)
    assert "without its adapters it may fit" in str(never.value) and never.value.param == "loras"
    engine.close()


def test_who_has_no_room_for_what_a_step_cache_remembers_is_told_that_it_fits_without() -> None:
    with contextlib.closing(start(Config(SHAPES))) as engine:
        (_, plain), (request, need) = (
            known_to(engine, output_type="latent", num_inference_steps=8, cache=cache)
            for cache in (None, "taylorseer,order=4,last=0,threshold=9")
        )
        assert plain.most < need.most
        engine.space = replace(engine.space, room=(plain.most + need.most) // 2)
        with pytest.raises(RequestError, match="with cache='none' it may fit as it is"):
            engine.submit(replace(request, id="remembers"))


def test_what_paused_requests_wear_stays_and_takes_room_once(
    adapters: tuple[list[str], int],
) -> None:
    (one, _), size = adapters
    engine = start(Config(SHAPES, schedule=ScheduleConfig(company="always")))
    request, _ = known_to(engine, output_type="latent", num_inference_steps=6)
    names, scheduler = ("first", "second"), engine.scheduler
    for name in names:
        engine.submit(wearing(request, name, one))
    while not engine.runner.states:  # its size is learnt first
        tick(engine)
    for name in names:
        engine.pause(name)
    tick(engine)
    assert scheduler.taken(engine.foretelling.extent.guess) - scheduler.kept.all == size, "once, whoever else wears it"
    assert engine.runner.remembered.adapters == (size, 0)
    engine.sleep()
    assert engine.runner.pipeline.ctx.adapters.nbytes == size, "it goes on with it"
    for name in names:
        engine.cancel(name)
    engine.wake_up()
    drain(engine)
    assert engine.runner.remembered.adapters == (0, size)
    engine.sleep()
    assert engine.runner.remembered.adapters == (0, 0), "nobody wears it"
    engine.close()


@pytest.mark.parametrize("more", [0, 1], ids=["with room", "without"])
def test_small_ones_are_tried_of_what_may_have_no_room_beside_what_paused_requests_wear(
    more: int, adapters: tuple[list[str], int]
) -> None:
    (one, _), size = adapters
    with contextlib.closing(start(Config(SHAPES, schedule=ScheduleConfig(company="always")))) as engine:
        request, _ = known_to(engine, output_type="latent", num_inference_steps=6)
        engine.submit(wearing(request, "first", one))
        while not engine.runner.states:  # its size is learnt first
            tick(engine)
        engine.pause("first")
        tick(engine)
        other = engine.make_request(Ask("a red circle", LARGE))
        guess, kept = engine.foretelling.extent.guess(other), engine.scheduler.kept.all
        engine.space = replace(engine.space, room=guess.most + kept + size - more)
        for id_, files in (("second", ()), ("third", (one,))):  # who wears the same takes no more
            engine.submit(wearing(other, id_, *files))
            drain(engine)
            assert engine.foretelling.knows(other) == bool(more)


@pytest.mark.parametrize(("several", "spare"), [(1, 2 * TEXT), (2, 0)], ids=["alone", "in company"])
def test_what_is_remembered_gives_way_to_who_has_no_room_beside_it(several: int, spare: int) -> None:
    engine = start(
        Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always"))
    )
    request, need = known_to(engine)
    room = need.times(several).most + spare
    engine.space = replace(engine.space, room=room)
    engine.runner.memo.clear()  # torch tells of no block that was there before
    engine.runner.forwards.count = 0

    def draw() -> None:
        read(engine, 10)
        finished(engine, *(replace(request, id=str(number)) for number in range(several)))

    took = most_allocated(torch.device("cpu"), draw)
    assert took is not None and max(took.values()) < room * 1.02
    assert engine.runner.forwards.count == 2, "nobody waits for another"
    engine.close()


def test_what_is_remembered_stays_where_there_is_room_for_all() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    request, need = known_to(engine)
    finished(engine, request)
    read(engine, 10)
    there = engine.runner.memo.bytes
    engine.space = replace(engine.space, room=need.most + there)
    finished(engine, replace(request, id="again"))
    assert engine.runner.memo.bytes == there
    engine.close()


def test_what_is_remembered_gives_way_to_who_may_have_no_room_beside_it_by_any_guess() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    request = engine.make_request(Ask("a red circle", LARGE))
    read(engine, 10)
    engine.space = replace(engine.space, room=engine.foretelling.extent.guess(request).most + 2 * TEXT)
    finished(engine, request)
    assert not engine.foretelling.kinds
    assert TEXT < engine.runner.memo.bytes < 2 * TEXT
    engine.close()


@pytest.mark.costly(turns=3)
def test_a_text_is_read_once_for_all_outputs_where_nothing_more_can_be_remembered() -> None:
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    request, need = known_to(engine, num_outputs_per_prompt=3)
    memo, hits = engine.runner.memo, list[int]()
    for room in (engine.space.room, need.most):
        memo.clear()
        engine.space, memo.hits = replace(engine.space, room=room), 0
        finished(engine, request)
        hits.append(memo.hits)
    assert hits[0] == hits[1] > 0
    there = memo.bytes
    finished(engine, engine.make_request(Ask("a blue star", request.params)))
    assert memo.bytes == there, "of the first nobody is left"
    engine.close()


def test_small_ones_of_whose_kind_nobody_knows_do_not_take_more_than_there_is_together() -> None:
    engine = start(
        Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), schedule=ScheduleConfig(company="always"))
    )
    params = replace(LARGE, width=128, height=128, num_inference_steps=2, output_type="latent")
    request = engine.make_request(Ask("a red circle", params))
    assert engine.foretelling.extent.smaller(request) is None, "nothing smaller is tried for it"

    def taken(count: int) -> int:
        requests = [replace(request, id=f"{request.id}-{index}") for index in range(count)]
        took = most_allocated(torch.device("cpu"), lambda: finished(engine, *requests))
        assert took is not None
        return max(took.values())

    room = taken(1) * 3 // 2
    assert taken(4) > room
    engine.space = replace(engine.space, room=room)
    assert taken(4) < room
    guess = engine.foretelling.extent.guess(request)
    engine.space = replace(engine.space, room=guess.times(2).most)
    for index in range(3):
        engine.submit(replace(request, id=str(index)))
    tick(engine)
    assert sum(entry.begun for entry in engine.scheduler.entries.values()) == 2, "as many as fit by any guess"
    engine.close()


def test_a_pool_in_which_nothing_was_tried_goes_by_guesses_and_then_by_what_it_knows() -> None:
    pools = DeployConfig((PoolConfig("texts", ("encode prompt", "encode negative prompt")), PoolConfig("rest", ("*",))))
    model, pools = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"), replace(pools, pool="texts")
    engine = start(Config(model, deploy=pools))
    request = engine.make_request(Ask("a red circle", LARGE))
    guess = engine.foretelling.extent.guess(request)
    engine.space = replace(engine.space, room=guess.times(2).most - 1)
    for id_ in ("first", "second"):
        engine.submit(replace(request, id=id_))
    entries = engine.scheduler.entries.values()
    assert [entry.need for entry in entries] == [guess, guess]
    assert set(engine.scheduler.pick(0.0, engine.runner.cost, room=guess.times(2).most - 1).run) == {"first/0"}
    try_part(engine, request, lambda number: ())
    assert all(0 < entry.need.most < guess.most // 100 for entry in entries), "those that were there before, too"
    engine.close()


def test_what_is_worn_in_a_pool_takes_room_from_when_it_was_read(adapters: tuple[list[str], int]) -> None:
    (one, _), size = adapters
    engine = start(Config(SHAPES, deploy=BEGINNING))
    request = engine.make_request(Ask("a red circle", replace(LARGE, num_inference_steps=4)))
    for name in ("first", "second"):
        engine.submit(wearing(request, name, one))
    guess = engine.foretelling.extent.guess
    while not engine.runner.states:
        tick(engine)
    assert len(engine.runner.jobs) == 2
    before = guess(request).and_of(guess(request)).most
    assert engine.scheduler.taken(guess) == before + size, "once, though nothing else was learnt"
    engine.close()


@pytest.mark.parametrize("why", ["unreadable", "full"])
def test_what_came_of_one_that_cannot_wear_something_in_a_later_pool_is_forgotten_and_who_waits_keeps_it(
    adapters: tuple[list[str], int], tmp_path: Path, why: str
) -> None:
    (one, other), size = adapters
    file = shutil.copy(other, tmp_path / "style.safetensors")
    lora = LoraConfig(memory=size * 3 // 2)
    with contextlib.ExitStack() as opened:
        engines = [start(Config(SHAPES, lora=lora, deploy=replace(THREE, pool=pool.name))) for pool in THREE.pools]
        for engine in engines:
            opened.callback(engine.close)
        first, second, _ = engines
        request = first.make_request(Ask("a red circle", replace(LARGE, width=64, height=64, num_inference_steps=3)))
        requests = [wearing(request, "worn", one), wearing(request, "asked", str(file))]
        for each in requests:
            first.submit(each)
        handed = [event for event in drain(first) if isinstance(event, Handed)]
        if why == "unreadable":
            file.unlink()
        for each, event in zip(requests, handed, strict=True):
            second.hear(carried(event, second.runner.pipeline.records))
            second.submit(each)
        events = drain(second)
        failed = [event.request_id for event in events if isinstance(event, Failed)]
        assert failed == (["asked"] if why == "unreadable" else [])
        done = [event.request_id for event in events if isinstance(event, Handed)]
        assert done == (["worn"] if why == "unreadable" else ["worn", "asked"])
        assert not second.runner.hand._arrived and not second.runner.jobs and not second.scheduler.entries


def test_a_pool_forgets_for_what_its_own_stages_take() -> None:
    pools = DeployConfig((PoolConfig("texts", ("encode prompt", "encode negative prompt")), PoolConfig("rest", ("*",))))
    model = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")
    engine = start(Config(model, deploy=replace(pools, pool="texts")))
    request = engine.make_request(Ask("a red circle", LARGE))
    read(engine, 10)
    engine.space = replace(engine.space, room=engine.foretelling.extent.guess(request).most + 2 * TEXT)
    engine.submit(request)
    drain(engine)
    assert TEXT < engine.runner.memo.bytes < 2 * TEXT
    engine.close()


def test_what_may_have_no_room_beside_others_is_tried_before_it_begins_and_then_waits_for_its_turn(
    subject: Subject,
) -> None:
    engine = start(subject.config())
    request = engine.make_request(large(subject, 320))
    guess = engine.foretelling.extent.guess(request)
    engine.space = replace(engine.space, room=guess.and_of(guess).most - 1)
    first, second = (engine.submit(replace(request, id=id_)) for id_ in ("first", "second"))
    tick(engine)
    assert engine.foretelling.takes(request, 0), "there is room for either by any guess, and not for both"
    assert not engine.runner.jobs, "it is known from the next tick on"
    assert all(entry.left == entry.tokens * request.evaluations for entry in engine.scheduler.entries.values())
    need = engine.foretelling.needs(request, 0)
    engine.space = replace(engine.space, room=need.and_of(need).most - 1)
    events = tick(engine)
    assert set(engine.runner.jobs) == {first}
    events += drain(engine)
    assert torch.equal(outputs(events, first), outputs(events, second))
    engine.close()
