"""Every registered pipeline on a real accelerator gives what the CPU gives, in every way in which it can run there.

In float32, without the shorter numbers that matrix units would take for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import CacheConfig, CompileConfig, OffloadConfig, ScheduleConfig
from omnimuse.core.output import Preview, Progress
from omnimuse.engine.engine import Engine
from omnimuse.worker.place import most_allocated
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit
from tests.rounding import check_no_further

Make = Callable[..., Engine]
FAST = ScheduleConfig(tier="fast", strict_slots=True, company="always")
FAR = 2e-3
"""Of pixels and latents in float32: another order of sums, through all steps."""


def asks(subject: Subject) -> list[object]:
    return [subject.ask(index, output_type="pt") for index in range(len(subject.family.wishes))]


def expect_alike(found: list[Tensor], expected: list[Tensor], subject: Subject) -> None:
    for index, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        assert torch.isfinite(ours.float()).all()
        assert subject.family.far(ours.float(), plain.float()) < FAR, f"wish {index}"


@pytest.fixture
def expected(subject: Subject, engine_on: Make, cpu: dict[str, list[Tensor]]) -> list[Tensor]:
    """What the CPU draws; made once for each family."""
    if subject.family.name not in cpu:
        cpu[subject.family.name] = run(engine_on("cpu", schedule=FAST), *asks(subject))  # type: ignore[arg-type]
    return cpu[subject.family.name]


@pytest.fixture(scope="session")
def cpu() -> dict[str, list[Tensor]]:
    return {}


@pytest.mark.parametrize("offload", ["none", "components", "layers"])
def test_an_accelerator_draws_what_the_cpu_draws(
    subject: Subject, engine_on: Make, expected: list[Tensor], offload: str
) -> None:
    engine = engine_on(schedule=FAST, offload=OffloadConfig(offload))  # type: ignore[arg-type]
    expect_alike(run(engine, *asks(subject)), expected, subject)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_draw_what_the_cpu_draws(subject: Subject, engine_on: Make, expected: list[Tensor]) -> None:
    engine = engine_on(schedule=FAST, compile=CompileConfig("blocks"))
    expect_alike(run(engine, *asks(subject)), expected, subject)  # type: ignore[arg-type]


def test_a_paused_request_leaves_the_accelerator_and_comes_back(
    subject: Subject, engine_on: Make, expected: list[Tensor]
) -> None:
    engine = engine_on(schedule=FAST, cache=CacheConfig("teacache", 0.0))
    [id_] = submit(engine, subject.ask(0, output_type="pt", previews=1))
    seen = []
    while not any(isinstance(event, Progress) for event in seen):
        seen += engine.tick()
    engine.pause(id_)
    seen += engine.tick()
    engine.resume(id_)
    seen += drain(engine)
    assert any(isinstance(event, Preview) for event in seen)
    expect_alike([outputs(seen, id_)], expected[:1], subject)


@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_in_bfloat16_an_accelerator_is_as_near_float32_as_the_reference_is(
    subject: Subject, engine_on: Make, output_type: str
) -> None:
    found = run(engine_on(dtype="bfloat16", schedule=FAST), *subject.asks(output_type=output_type))
    check_no_further(subject.family, subject.folder, [each[0] for each in found], output_type)


def test_a_step_does_not_make_the_host_wait(subject: Subject, engine_on: Make) -> None:
    """torch itself is asked to refuse every wait in the middle of a loop."""
    engine = engine_on(schedule=FAST)
    frames = {"num_frames": 13} if subject.family.wishes[0].params.num_frames else {}
    lasting = {"seconds": 3.2, "extra": None} if subject.family.sounds else {}
    choices = {"output_type": "latent", "num_inference_steps": 6, **frames, **lasting, **subject.family.long}
    for _ in range(2):  # the first one fills the tables that depend on the size
        submit(engine, subject.ask(0, **choices))
        ticks, stage = 0, ""
        while not engine.idle:
            steps = [event for event in engine.tick() if isinstance(event, Progress)]
            middle = bool(steps) and 1 < steps[-1].step < steps[-1].steps - 1
            ticks, stage = ticks + middle, steps[-1].stage if steps else stage
            refuse_waits(middle)
        refuse_waits(False)
    assert ticks, stage


@of([family for family in FAMILIES if family.name in ("ZImagePipeline", "WanPipeline-2.1")])
def test_what_stages_take_is_counted_and_the_most_of_it_is_the_peak(subject: Subject, engine_on: Make) -> None:
    engine, device = engine_on(schedule=FAST), torch.device("cuda")
    draw = partial(run, engine, subject.ask(0, output_type="pt", width=256, height=256))
    draw()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    draw()
    peak = torch.cuda.max_memory_allocated() - before
    took = most_allocated(device, draw)
    assert took is not None and took["diffuse"] > 0 and took["vae.decode"] > 0
    assert max(took.values()) == pytest.approx(peak, rel=0.02)


def refuse_waits(wanted: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that it does not notice all of them
        torch.cuda.set_sync_debug_mode("error" if wanted else "default")
