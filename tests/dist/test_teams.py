"""Four ranks that divide as requests come and go give what one rank gives, and a team's failure is one request's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import CacheConfig, Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Failed
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.parallel.mesh import Mesh
from omnimuse.worker.build import SHAPES, check
from omnimuse.worker.build import begin as begin_build
from omnimuse.worker.build import run as run_passes
from omnimuse.worker.pace import Offer
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, outputs, run, submit
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

STEPS = (3, 3, 5, 7)
"""All four step together, then two, then one."""
NAMES = ("Lumina2Pipeline", "StableAudioPipeline")
GLM = "GlmImagePipeline"


@dataclass(frozen=True)
class Job:
    """What every rank is told: which family, where its checkpoint is, where results go."""

    name: str
    folder: Path
    results: Path

    @property
    def subject(self) -> Subject:
        [family] = [family for family in FAMILIES if family.name == self.name]
        return Subject(family, self.folder)

    def config(self, parallel: ParallelConfig) -> Config:
        return Config(
            ModelConfig(str(self.folder), dtype="float32", device="cpu"),
            parallel=parallel,
            schedule=ScheduleConfig(company="always"),
            host=HostConfig(threads=1),
        )

    def draw(self, engine: Engine) -> list[Tensor]:
        return run(engine, *(self.subject.ask(0, num_inference_steps=steps, seed=steps) for steps in STEPS))


def on_rank(rank: int, jobs: list[Job], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, the others follow each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=4)
    for job in jobs:
        try:
            engine = start(job.config(ParallelConfig(ulysses=4, elastic=True)))
        except SystemExit:
            continue
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(drive(engine, job))}, job.results)
        engine.close()


def drive(engine: Engine, job: Job) -> list[Tensor]:
    """Requests that end one after the other; then four of which one fails in its team alone."""
    found, forwards = job.draw(engine), engine.runner.forwards
    assert set(forwards.divided) == {1, 2, 4}, "as many teams as there are requests"
    bad, *good = submit(engine, *(job.subject.ask(0, num_inference_steps=STEPS[0], seed=STEPS[0]) for _ in STEPS))
    engine.tick()
    [broken] = [state for state in engine.runner.states.values() if state.id.startswith(bad)]
    broken["latents"] = broken["latents"][:1]  # on this rank only, which is a team of its own
    events = drain(engine)
    assert [event.request_id for event in events if isinstance(event, Failed)] == [bad]
    assert not forwards.retries
    plain = engine.make_request(job.subject.ask(0))
    cached = replace(plain, params=replace(plain.params, cache="teacache,threshold=0.1"))
    offer = Offer("", 8, STEPS[0])
    assert forwards.teams([(plain, offer)] * 4) == 4
    assert forwards.teams([(plain, offer)] * 3 + [(cached, offer)]) == 1, "what it remembers is on all ranks"
    assert any(ranks == 1 and share == 1 for *_, ranks, share in forwards.shares.table()), "what they take is learned"
    return [*found, *(outputs(events, id_) for id_ in good)]


@pytest.mark.costly
def test_ranks_that_divide_give_what_one_rank_gives(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    jobs = [Job(name, tiny(name), tmp_path / f"{name}.safetensors") for name in NAMES]
    play(on_rank, jobs, tmp_path / "meeting", ranks=4)
    for job in jobs:
        engine = start(job.config(ParallelConfig()))
        alone = job.draw(engine)
        engine.close()
        found = load_file(job.results)
        assert len(found) == 7
        for index, tensor in enumerate([*alone, *[alone[0]] * 3]):
            assert (found[str(index)] - tensor).norm() <= 1e-5 * tensor.norm(), f"{job.name}, request {index}"


def test_what_writes_codes_of_a_picture_first_cannot_be_where_ranks_divide(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """What it remembers of them is on the ranks that have read them."""
    elastic = ParallelConfig(ulysses=2, elastic=True)
    config = Job(GLM, tiny(GLM), tmp_path).config(elastic)
    with pytest.raises(ConfigError, match="which writes first: every rank must have read what is written"):
        run_passes(begin_build(config, Mesh.planned(elastic)), SHAPES)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"cache": CacheConfig("teacache", 0.1)}, "with cache=teacache: each rank would remember some steps only"),
        ({"schedule": ScheduleConfig(tier="exact")}, "with tier=exact: how many ranks add up"),
    ],
)
def test_what_every_rank_must_know_of_every_step_cannot_be_where_ranks_divide(
    tiny: Callable[[str], Path], tmp_path: Path, parts: dict[str, object], words: str
) -> None:
    elastic = ParallelConfig(ulysses=4, elastic=True)
    config = replace(Job(NAMES[0], tiny(NAMES[0]), tmp_path).config(elastic), **parts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        check(begin_build(config, Mesh.planned(elastic)))
