"""The promises of the house, checked for every registered pipeline with tiny random weights.

Numbers in names follow no order; what each test promises is its name. "Close" is 1e-5 relative in float32: batching
changes the order of additions. Where nothing is shared, results are equal bit for bit; the tier that shares and is
equal bit for bit has its own file, `test_tiers.py`.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.config import AttentionConfig, CompileConfig, HostConfig, ModelConfig, ScheduleConfig
from omnimuse.core.errors import ModelError
from omnimuse.core.machine import cores
from omnimuse.core.output import Done, Event, Failed, Preview, Progress
from omnimuse.core.request import Ask
from omnimuse.core.sources import Region
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import CONFIGS, INDEX
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.models import TABLE
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.region import canvas
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.state import SlotError
from omnimuse.worker.find import find
from omnimuse.worker.governor import IdleTeams
from omnimuse.worker.warm_up import SMALL, warm_up_ask
from tests.checkpoints.families import ALLROUNDERS, FAMILIES, NETWORKS, SPEAKERS, WRITERS
from tests.checkpoints.wishes import photo
from tests.invariants.conftest import (
    Subject,
    blocks_of,
    check_attention,
    drain,
    of,
    outputs,
    results,
    run,
    runs_of_blocks,
    submit,
    tick,
    with_params,
)

Make = Callable[..., Engine]
EXACT = ScheduleConfig(tier="exact", strict_slots=True, company="always")


@pytest.fixture(scope="module")
def exact(subject: Subject) -> Iterator[Engine]:
    """One engine per family that shares nothing, whose tests must leave nothing behind for each other."""
    engine = start(subject.config(schedule=EXACT))
    yield engine
    assert not engine.runner.states and not engine.runner.forwards.retries
    engine.close()


@pytest.fixture(scope="module")
def crowded(subject: Subject) -> Iterator[Engine]:
    """The same with two places."""
    engine = start(subject.config(schedule=replace(EXACT, max_running=2)))
    yield engine
    assert not engine.runner.states and not engine.runner.forwards.retries
    engine.close()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def test_every_registered_architecture_has_a_tiny_checkpoint_here() -> None:
    assert {each.arch for each in (*FAMILIES, *WRITERS, *SPEAKERS, *ALLROUNDERS)} == set(TABLE)


@pytest.mark.crossed(turns=3)
def test_step_by_step_is_run_to_completion(subject: Subject, shared: Engine) -> None:
    request = shared.make_request(subject.ask(0))
    [expected] = run(shared, subject.ask(0))
    pipeline = shared.runner.pipeline
    states = pipeline.states(request, strict=True)
    pipeline.prepare_encode(states)
    for _ in range(len(states[0].plan)):
        pipeline.step_scheduler(states, pipeline.denoise_step(states))
    assert torch.equal(pipeline.post_decode(states)[0], expected[0])
    assert torch.equal(pipeline.forward(request)[0], expected[0])


@pytest.mark.crossed
def test_the_smallest_legal_request_is_drawn_so_that_a_worker_can_warm_up(shared: Engine) -> None:
    ask = warm_up_ask(SMALL, shared.door)
    assert ask is not None
    [drawn] = run(shared, ask)
    assert drawn.isfinite().all()
    assert shared.door.spec.medium == "audio" or drawn.shape[-1] == shared.door.limits.size_multiple


@pytest.mark.crossed
def test_how_threads_wait_changes_no_bit_and_their_number_the_last_ones_only(
    subject: Subject, engine_with: Make, shared: Engine
) -> None:
    [expected] = run(shared, subject.ask(0))
    teams = IdleTeams(torch.get_num_threads(), cores()) if torch.get_num_threads() > 1 else None
    if teams is not None:
        teams.hold()
        [asleep] = run(shared, subject.ask(0))
        teams.release()
        assert torch.equal(asleep, expected)
    engine = engine_with(host=HostConfig(threads=torch.get_num_threads() % 2 + 1))
    assert close(run(engine, subject.ask(0))[0], expected)


@pytest.mark.crossed(turns=3)
@pytest.mark.shows("company", wishes=True)
def test_in_company_is_close_to_alone_in_the_fast_tier(subject: Subject, engine_with: Make) -> None:
    engine = engine_with(schedule=ScheduleConfig(tier="fast", strict_slots=True, company="always"))
    asks = subject.asks()
    alone = [run(engine, ask)[0] for ask in asks]
    for expected, found in zip(alone, run(engine, *asks), strict=True):
        assert close(found, expected)


@pytest.mark.crossed
@pytest.mark.shows("exact", wishes=True)
def test_in_company_is_alone_bit_for_bit_in_the_exact_tier(subject: Subject, exact: Engine) -> None:
    asks = subject.asks()
    alone = [run(exact, ask)[0] for ask in asks]
    for expected, found in zip(alone, run(exact, *asks), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.crossed
def test_a_small_tick_budget_changes_nothing_but_the_grouping(
    subject: Subject, engine_with: Make, shared: Engine
) -> None:
    asks = subject.asks()
    narrow = engine_with(schedule=ScheduleConfig(tick_tokens=1, max_running=2, strict_slots=True, company="always"))
    for expected, found in zip(run(shared, *asks), run(narrow, *asks), strict=True):
        assert close(found, expected)


@pytest.mark.crossed
@pytest.mark.parametrize("ticks", [0, 1, 4, 6])
def test_cancelling_frees_the_state_and_leaves_the_others_as_they_were(
    subject: Subject, exact: Engine, ticks: int
) -> None:
    [expected] = run(exact, subject.ask(1))
    stopped, other = submit(exact, subject.ask(0, num_inference_steps=9), subject.ask(1))
    events = [event for _ in range(ticks) for event in exact.tick()]
    exact.cancel(stopped)
    events += exact.tick()
    assert any(isinstance(event, Failed) and event.request_id == stopped for event in events)
    assert stopped not in exact.runner.jobs
    assert not any(state.startswith(stopped) for state in exact.runner.states)
    assert torch.equal(outputs(events + drain(exact), other), expected)


@pytest.mark.crossed(turns=3)
def test_pausing_on_the_cpu_and_resuming_changes_nothing(subject: Subject, shared: Engine) -> None:
    [expected] = run(shared, subject.ask(0))
    [id_] = submit(shared, subject.ask(0))
    while not any(state.position for state in shared.runner.states.values()):
        tick(shared)
    shared.pause(id_)
    shared.tick()
    assert shared.idle, "it is parked"
    shared.resume(id_)
    assert torch.equal(outputs(drain(shared), id_), expected)


@pytest.mark.crossed
@pytest.mark.parametrize("seed", range(3))
def test_pausing_resuming_and_cancelling_in_any_order_harms_nobody(
    subject: Subject, crowded: Engine, seed: int
) -> None:
    engine, chance = crowded, random.Random(seed)
    asks = subject.asks()
    expected = [run(engine, ask)[0] for ask in asks]
    ids = submit(engine, *asks)
    paused, cancelled, events = set[str](), set[str](), list[Event]()
    while living := sorted(engine.scheduler.entries):
        chosen = chance.choice(living)
        deed = chance.choice(["pause", "resume", "resume", "tick", "tick", "cancel" if not cancelled else "tick"])
        if deed == "pause":
            engine.pause(chosen)
            paused.add(chosen)
        elif deed == "resume":
            engine.resume(chosen)
            paused.discard(chosen)
        elif deed == "cancel":
            engine.cancel(chosen)
            cancelled.add(chosen)
        elif not engine.idle:
            made = engine.tick()
            assert not paused & {event.request_id for event in made if isinstance(event, Progress)}
            events += made
    for id_, tensor in zip(ids, expected, strict=True):
        if id_ not in cancelled:
            assert torch.equal(outputs(events, id_), tensor)
    assert not engine.runner.states


@pytest.mark.crossed(turns=3)
@pytest.mark.shows("previews")
def test_progress_is_monotone_with_one_event_per_step_and_previews_are_pictures(
    subject: Subject, shared: Engine
) -> None:
    [id_] = submit(shared, subject.ask(0, previews=1))
    events = [event for event in drain(shared) if event.request_id == id_]
    for loop in shared.runner.pipeline.stages:
        if isinstance(loop, Loop):
            steps = [(e.step, e.steps) for e in events if isinstance(e, Progress) and e.stage == loop.name]
            assert steps == [(i + 1, None if loop.grows else len(steps)) for i in range(len(steps))]
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == list(range(1, len(previews) + 1))
    assert previews
    for preview in previews:
        assert preview.image.dtype == "uint8"
        assert preview.image.ndim == 3
        assert preview.image.shape[2] == 3
        assert preview.image.std() > 0


@pytest.mark.crossed
@pytest.mark.parametrize("scheduler", [None, "heun"])
def test_as_many_steps_are_told_of_as_a_request_counts_evaluations(
    subject: Subject, shared: Engine, scheduler: str | None
) -> None:
    if scheduler and not shared.door.limits.flow:
        pytest.skip("its scheduler cannot be chosen")
    request = shared.make_request(subject.ask(0, scheduler=scheduler, num_inference_steps=4))
    shared.submit(request)
    steps = [event.step for event in drain(shared) if isinstance(event, Progress) and event.stage == "denoise"]
    assert len(steps) == request.evaluations == (2 * request.steps - 1 if scheduler else request.steps)


@pytest.mark.crossed
def test_who_has_nothing_to_encode_is_not_told_of(subject: Subject, shared: Engine) -> None:
    request = shared.make_request(subject.ask(0))
    shared.submit(request)
    events = drain(shared)
    [result] = results(shared, events, [request.id])
    told = {event.stage for event in events if isinstance(event, Progress)} | result.timings.keys()
    for stage in shared.runner.pipeline.stages:
        if stage.reads and set(stage.reads) <= {"images", "sounds", "videos", "region"}:
            assert any(getattr(request, name) for name in stage.reads) or stage.name not in told


@pytest.mark.crossed
def test_a_step_costs_the_tokens_of_its_rows_and_decoding_is_not_charged_as_denoising(
    subject: Subject, shared: Engine
) -> None:
    runner, costs = shared.runner, dict[str, set[int]]()
    submit(shared, subject.ask(0, output_type="pt"))
    while not shared.idle:
        for state in runner.states.values():
            stage = runner.pipeline.stage_of(state)
            if state.plan and isinstance(stage, Loop):
                price = runner.cost(state.id)
                assert price is not None and price.network == state.plan[state.position].network
                costs.setdefault(stage.name, set()).add(price.tokens)
                rows = runner.pipeline.rows(stage, state)
                assert not rows or sum(row.tokens for row in rows) == price.tokens
                for row in rows:
                    if isinstance(stage, Denoise):
                        assert row.tokens >= stage.token_count(runner.pipeline.ctx.configs, state.request)
        shared.tick()
    denoising = costs.pop("denoise")
    assert all(0 < cost <= max(denoising) for each in costs.values() for cost in each)


@pytest.mark.crossed
@pytest.mark.shows("block timings", "previews")
def test_neither_previews_nor_who_times_blocks_changes_the_result(subject: Subject, shared: Engine) -> None:
    [expected] = run(shared, subject.ask(0))
    [id_] = submit(shared, replace(subject.ask(0, previews=1), blocks=True))
    events = drain(shared)
    assert torch.equal(outputs(events, id_), expected)
    [result] = [event.result for event in events if isinstance(event, Done)]
    assert runs_of_blocks(shared, result)


@pytest.mark.crossed
@pytest.mark.shows("recording")
def test_a_recording_changes_nothing_and_names_all_steps_and_blocks(
    subject: Subject, shared: Engine, tmp_path: Path
) -> None:
    [expected] = run(shared, subject.ask(0))
    shared.recordings.begin()
    [found] = run(shared, subject.ask(0))
    [trace] = shared.recordings.end(tmp_path / "trace.json.gz")
    assert torch.equal(found, expected)
    named = {str(event.get("name")) for event in json.loads(trace.read_bytes())["traceEvents"]}
    steps = shared.make_request(subject.ask(0)).evaluations
    assert {f"step {number} of {steps}" for number in range(1, steps + 1)} <= named
    assert any(named.issuperset(names) for names in blocks_of(shared)), "those of a network that ran"


PADDING = [
    family
    for family in FAMILIES
    if family.arch in ("ChromaPipeline", "FluxPipeline", "StableDiffusion3Pipeline", "ZImagePipeline")
]
"""Whose references add no margins: their own tests have none."""


@pytest.mark.crossed
@pytest.mark.shows("pad", "picture in")
@pytest.mark.shows("mask", "picture in")
@of(PADDING)
def test_margins_are_drawn_as_a_larger_picture_s_masked_edges_are(subject: Subject, exact: Engine) -> None:
    picture, pad = picture_of(photo(48, 32)), (0, 16, 0, 16)
    larger = canvas(picture, Region(pad=pad))
    mask = Image.new("L", larger.size, "white")
    mask.paste("black", (0, 16, 48, 48))
    given = ({"images": [picture], "pad": list(pad)}, {"images": [picture_of(larger)], "mask": mask_of(mask)})
    plain = subject.ask(0, width=48, height=64, strength=1.0, output_type="pt")
    said = plain.prompt if isinstance(plain.prompt, dict) else {"prompt": plain.prompt}
    asks = [replace(plain, prompt={**said, **each}) for each in given]
    padded, masked = run(exact, *asks)
    assert torch.equal(padded, masked)


@pytest.mark.crossed(turns=3)
def test_undeclared_slots_are_refused_in_every_stage(subject: Subject, shared: Engine) -> None:
    [state] = shared.runner.pipeline.states(shared.make_request(subject.ask(0)), strict=True)
    for stage in shared.runner.pipeline.stages:
        with state.opened_for(stage):
            with pytest.raises(SlotError, match="cannot read slot 'nowhere'"):
                state["nowhere"]
            with pytest.raises(SlotError, match="cannot write slot"):
                state[stage.reads[0] if stage.reads else "nowhere"] = 1


@pytest.mark.crossed
@of(NETWORKS)
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_give_the_same_and_always_the_same(subject: Subject, shared: Engine, engine_with: Make) -> None:
    """Of one request: for which companies and sizes there is other code is asked of a compiler that makes none, in
    `test_compiled.py`.
    """
    ask = subject.ask(0)
    engine = engine_with(compile=CompileConfig("blocks"))
    [first], [again], [plain] = run(engine, ask), run(engine, ask), run(shared, ask)
    assert close(first, plain, 1e-4)
    assert torch.equal(again, first)


@pytest.mark.crossed
@pytest.mark.parametrize(
    "attention",
    [
        *(
            pytest.param(AttentionConfig(name), id=name, marks=pytest.mark.shows(name))
            for name in ("sdpa", "reference", "sdpa_flash", "sdpa_math", "flex")
        ),
        pytest.param(
            AttentionConfig("sdpa", {"self": "reference"}), id="per role", marks=pytest.mark.shows("per role")
        ),
    ],
)
def test_attention_backends_agree_and_are_chosen_per_role(
    subject: Subject, shared: Engine, engine_with: Make, attention: AttentionConfig
) -> None:
    asks, engine = subject.asks(), engine_with(attention=attention)
    for plain, found in zip(run(shared, *asks), run(engine, *asks), strict=True):
        assert close(found, plain)
    check_attention(engine, attention)


@pytest.mark.crossed
@pytest.mark.shows("several", "exact")
def test_n_outputs_are_n_requests_with_seeds_in_a_row(subject: Subject, exact: Engine) -> None:
    ask = subject.ask(0)
    [many] = run(exact, with_params(ask, num_outputs_per_prompt=3))
    seed = ask.params.seed
    assert seed is not None
    singles = run(exact, *(with_params(ask, seed=seed + i) for i in range(3)))
    for one, single in zip(many, singles, strict=True):
        assert torch.equal(one, single[0])


@pytest.mark.crossed
@pytest.mark.filterwarnings(  # diffusers' own, of a scheduler
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__:DeprecationWarning"
)
def test_a_mask_of_everything_is_no_mask_and_outside_of_one_the_picture_comes_back(
    subject: Subject, shared: Engine
) -> None:
    wishes = [index for index, wish in enumerate(subject.family.wishes) if list(wish.filled) == ["image"]]
    if not (shared.door.masks and wishes) or shared.door.spec.fills:
        pytest.skip("this family draws whole pictures, or its network decides what becomes of the rest")
    ask = subject.ask(wishes[-1])
    assert isinstance(ask.prompt, dict)
    assert "mask" not in ask.prompt
    size = ask.prompt["images"][0].width, ask.prompt["images"][0].height

    def masked(shade: str, width: int = 0, **choices: object) -> Ask:
        mask = Image.new("L", size, "black")
        mask.paste(shade, (0, 0, width or size[0], size[1]))
        assert isinstance(ask.prompt, dict)
        return with_params(replace(ask, prompt={**ask.prompt, "mask": mask_of(mask)}), **choices)

    plain, whole, none, part = run(shared, ask, masked("white"), masked("black"), masked("white", size[0] // 2))
    assert close(whole, plain)
    for scheduler in ("euler", "heun", "unipc", "dpm++"):
        again, half = run(
            shared,
            masked("black", num_inference_steps=3, strength=1.0, scheduler=scheduler),
            masked("white", size[0] // 2, scheduler=scheduler),
        )
        assert torch.equal(none, again), "whatever would have been drawn"
        assert torch.equal(half[..., -1], none[..., -1]), "what is kept is the picture's own"
    assert torch.equal(part[..., -1], none[..., -1])
    assert not close(part[..., 0], none[..., 0], 1e-2)


@pytest.mark.crossed(turns=3)
def test_a_failing_row_fails_only_its_request(subject: Subject, shared: Engine) -> None:
    [expected] = run(shared, subject.ask(1))
    bad, good = submit(shared, subject.ask(0, num_inference_steps=8), subject.ask(1))
    while not any(state.plan and state.id.startswith(bad) for state in shared.runner.states.values()):
        tick(shared)
    [broken] = [state for state in shared.runner.states.values() if state.id.startswith(bad)]
    broken["latents"] = broken["latents"][:1]  # too few channels: its next forward fails
    events = drain(shared)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert close(outputs(events, good), expected)
    assert not shared.runner.states
    assert shared.runner.forwards.retries.total() == 1, "the forward that the bad row was in"
    shared.runner.forwards.retries.clear()


@pytest.mark.crossed
def test_what_is_made_is_in_range_and_seeds_make_it_differ(subject: Subject, shared: Engine) -> None:
    first, second = run(shared, subject.ask(0, output_type="pt"), subject.ask(0, output_type="pt", seed=99))
    assert first.dtype == torch.float32
    low = -1 if subject.family.sounds else 0
    assert low <= float(first.min()) <= float(first.max()) <= 1
    assert not torch.equal(first, second)


@pytest.mark.crossed(turns=3)
def test_a_configuration_that_says_nothing_is_refused_as_a_fault_of_the_checkpoint(
    subject: Subject, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(subject.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors")))
    wanted = replace(subject.config(), model=ModelConfig(str(folder), load="dummy", device="cpu"))
    find(wanted)
    for file in [file for file in folder.rglob("*.json") if file.name in CONFIGS or file.name == INDEX]:
        content = file.read_text()
        for other in ("{}", None):
            file.unlink() if other is None else file.write_text(other)
            with suppress(ModelError):  # or it is found all the same, by what the reference takes for granted
                find(wanted)
            file.write_text(content)
