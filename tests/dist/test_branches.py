"""Guidance branches over two gloo ranks give what one rank gives, for every registered pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import Config, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.output import Failed
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, outputs, run, submit

pytestmark = pytest.mark.dist


@dataclass(frozen=True)
class Job:
    """What every rank is told of one family: where its checkpoint is, where results go."""

    family: int
    folder: Path
    results: Path

    def config(self, ranks: int) -> Config:
        model = ModelConfig(str(self.folder), dtype="float32", device="cpu")
        return Config(model, parallel=ParallelConfig(cfg=ranks), schedule=ScheduleConfig(company="always"))


def on_rank(rank: int, jobs: list[Job], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, rank 1 follows each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for job in jobs:
        try:
            engine = start(job.config(2))
        except SystemExit:
            continue
        save_file({str(i): tensor for i, tensor in enumerate(drive(engine, job))}, job.results)
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
    broken.working["conditions"] = dict.fromkeys(broken.working["conditions"])
    events = drain(engine)
    failed = sorted(event.request_id for event in events if isinstance(event, Failed))
    assert failed == [bad], "a row that fails on one rank fails its request on all, and nothing else"
    return [*found, outputs(events, good)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """What two ranks gave for every family, in one start of the two."""
    folder = tmp_path_factory.mktemp("ranks")
    made = [
        Job(index, family.build(folder / f"{index}"), folder / f"{index}.safetensors")
        for index, family in enumerate(FAMILIES)
    ]
    mp.spawn(on_rank, args=(made, folder / "meeting"), nprocs=2)  # type: ignore[no-untyped-call]
    return made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("family", range(len(FAMILIES)), ids=lambda index: FAMILIES[index].name)
def test_guidance_over_two_ranks_is_one_rank(family: int, jobs: list[Job]) -> None:
    job = jobs[family]
    found = load_file(job.results)
    engine = start(job.config(1))
    subject = Subject(FAMILIES[family], job.folder)
    expected = [run(engine, subject.ask(i))[0] for i in (0, 1, 2, 0)]
    engine.close()
    for index, tensor in enumerate(expected):
        error = (found[str(index)] - tensor).norm() / tensor.norm()
        assert error <= 1e-5, f"request {index}"
