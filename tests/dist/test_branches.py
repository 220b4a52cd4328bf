"""Guidance branches over two gloo ranks give what one rank gives, for every registered pipeline.

Close to it where forwards are shared in the tier "fast", and to the bit in the tier "invariant": to share forwards with
fewer rows, because another rank has the others, is to be in other company.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.output import Failed
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, outputs, run, submit
from tests.once import Once
from tests.ranks import play

pytestmark = pytest.mark.dist

Tier = Literal["fast", "invariant"]
SHOWN = (
    pytest.param("fast", marks=pytest.mark.shows("cfg", "company")),
    pytest.param("invariant", marks=pytest.mark.shows("cfg", "company", "invariant")),
)


@dataclass(frozen=True)
class Job:
    """What every rank is told of one family in one tier: where its checkpoint is, where results go."""

    family: int
    tier: Tier
    folder: Path
    results: Path

    def config(self, ranks: int) -> Config:
        """One thread for every rank, and for the only one: another number would give other last bits."""
        return Config(
            ModelConfig(str(self.folder), dtype="float32", device="cpu"),
            parallel=ParallelConfig(cfg=ranks),
            schedule=ScheduleConfig(tier=self.tier, company="always"),
            host=HostConfig(threads=1),
        )


def on_rank(rank: int, jobs: list[Job], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, rank 1 follows each until it closes."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for job in jobs:
        try:
            engine = start(job.config(2))
        except SystemExit:
            continue
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(drive(engine, job))}, job.results)
        engine.close()


def drive(engine: Engine, job: Job) -> list[Tensor]:
    """Three requests together; then one that is cancelled, one that fails on this rank only, and one beside them."""
    subject = Subject(FAMILIES[job.family], job.folder)
    found = run(engine, *(subject.ask(i) for i in range(3)))
    cancelled, bad, good = submit(engine, subject.ask(1), subject.ask(0, num_inference_steps=8), subject.ask(0))
    engine.tick()
    engine.cancel(cancelled)
    engine.tick()  # now the others are in their loops
    [broken] = [state for state in engine.runner.states.values() if state.id.startswith(bad)]
    broken["latents"] = broken["latents"][:1]  # too few channels: its next forward fails
    events = drain(engine)
    failed = sorted(event.request_id for event in events if isinstance(event, Failed))
    assert failed == [bad], "a row that fails on one rank fails its request on all, and nothing else"
    return [*found, outputs(events, good)]


@pytest.fixture(scope="module")
def job_of(request: pytest.FixtureRequest, once: Once, tiny: Callable[[str], Path]) -> Callable[[int, Tier], Job]:
    """What two ranks gave for a family in a tier: one start of the two for all tiers that this run has tests of."""
    here = (item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path)
    tiers: dict[int, list[Tier]] = {}
    for item in here:
        tiers.setdefault(item.callspec.params["family"], []).append(item.callspec.params["tier"])

    def job(family: int, tier: Tier) -> Job:
        folder = tiny(FAMILIES[family].name)

        def to_go(home: Path) -> dict[Tier, Job]:
            return {each: Job(family, each, folder, home / f"{each}.safetensors") for each in tiers[family]}

        def make(home: Path) -> None:
            home.mkdir()
            play(on_rank, list(to_go(home).values()), home / "meeting", ranks=2)

        return to_go(once.folder(f"branches-{FAMILIES[family].name}", make))[tier]

    return job


@pytest.mark.crossed
@pytest.mark.parametrize("tier", SHOWN)
@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=lambda index: FAMILIES[index].name)
def test_guidance_over_two_ranks_is_one_rank(family: int, tier: Tier, job_of: Callable[[int, Tier], Job]) -> None:
    job = job_of(family, tier)
    found = load_file(job.results)
    engine = start(job.config(1))
    subject = Subject(FAMILIES[family], job.folder)
    first, *others = (run(engine, subject.ask(i))[0] for i in range(3))
    engine.close()
    for index, tensor in enumerate([first, *others, first]):
        if tier == "invariant":
            assert torch.equal(found[str(index)], tensor), f"request {index}"
        else:
            assert (found[str(index)] - tensor).norm() <= 1e-5 * tensor.norm(), f"request {index}"
