"""What ranks exchange in a step makes no host wait for its device, and they draw what they draw on CPUs, for every
registered pipeline that draws.

The device is that of `tests/second_device.py`; what is sent from it goes through gloo, whose own threads wait, as no
transport between devices would. Counted is what our side of an exchange reads, uploads or sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.ar.kv import Decoder
from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.output import Done, Event, Failed
from omnimuse.core.request import Ask, Request
from omnimuse.worker.build import build
from omnimuse.worker.connect import connect
from omnimuse.worker.plan import TickPlan
from omnimuse.worker.runner import Runner
from tests.checkpoints.families import FAMILIES, WIDER
from tests.invariants.conftest import Subject
from tests.ranks import play
from tests.second_device import SecondDevice, moved_runner
from tests.waits import Waits, long_asks, waits_of_steps

pytestmark = [pytest.mark.dist, pytest.mark.crossed, pytest.mark.slow, pytest.mark.timeout(300)]

EVERYWHERE = (
    ParallelConfig(tensor=2),
    ParallelConfig(ulysses=2, shard=2),
    ParallelConfig(ring=2),
    ParallelConfig(pipe=2),
)
"""In these, weights are cut by the family's own plan, and rows and tokens by its conditions."""
Tick = Callable[[], Sequence[Event] | None]
DIVISIONS = {
    name: (*EVERYWHERE, ParallelConfig(cfg=2)) for name in ("QwenImagePipeline", *(family.name for family in WIDER))
}
"""Of these guidance, too."""
WITHOUT_WORDS = {"read", "denoise"}
"""Loops in which that network says no words."""


@dataclass(frozen=True)
class Scene:
    """A family in several divisions of the work, where its checkpoint is, and where ranks meet and leave waits."""

    family: str
    divisions: tuple[ParallelConfig, ...]
    checkpoint: Path
    folder: Path

    def config(self, parallel: ParallelConfig) -> Config:
        return Config(
            ModelConfig(str(self.checkpoint), dtype="float32", device="cpu"),
            parallel=parallel,
            schedule=ScheduleConfig(tier="fast", company="always"),
            host=HostConfig(threads=1),
        )


def ticks_of(runner: Runner, requests: Sequence[Request], made: dict[str, Tensor]) -> Tick:
    """Ticks in which all requests go on: every rank makes the same plans by itself. What is drawn lies in `made`."""
    plans = [TickPlan(admit=tuple(requests))]

    def tick() -> Sequence[Event] | None:
        plan = plans.pop() if plans else TickPlan(run=tuple(runner.states))
        if not (plan.admit or plan.run):
            return None
        events: list[Event] = []
        runner.execute(plan, events)
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                made[event.request_id] = event.result.output
        return events

    return tick


def asks_of(subject: Subject) -> list[Ask]:
    """Every wish; of what writes, too, those that begin with pictures, which are read together, without a thought."""
    asks = long_asks(subject)
    if subject.family not in WIDER:
        return asks
    return [ask for ask in asks if ask.prompt.get("images") and "modalities" not in (ask.params.extra or {})]


def on_rank(rank: int, scene: Scene) -> None:
    """Every request of the family in each division of the work; the waits of loops that draw are left in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scene.folder}/meeting", rank=rank, world_size=2)
    [family] = [family for family in (*FAMILIES, *WIDER) if family.name == scene.family]
    asks, found = asks_of(Subject(family, scene.checkpoint)), dict[str, Waits]()
    for parallel in scene.divisions:
        mesh = connect(parallel)
        built = build(scene.config(parallel), mesh)
        made = [replace(built.door.make_request(ask, 0.0, 0), id=f"r{number}") for number, ask in enumerate(asks)]
        found[str(parallel)] = waits_of(Runner(built.pipeline, scene.config(parallel).schedule, built.resources), made)
        mesh.close()
        built.resources.close()
    (scene.folder / f"waits-{rank}.json").write_text(json.dumps(found))


def waits_of(runner: Runner, requests: Sequence[Request]) -> Waits:
    """What loops that draw wait for on the second device, where all is drawn that this rank draws on a CPU."""
    expected, found = dict[str, Tensor](), dict[str, Tensor]()
    tick = ticks_of(runner, requests, expected)
    while tick() is not None:
        """Go on."""
    with SecondDevice() as device:
        runner = moved_runner(runner, device)
        waits = waits_of_steps(runner, device, ticks_of(runner, requests, found))
    assert len(requests) == len(expected) == len(found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    components = runner.pipeline.ctx.components
    stages = {stage.name: stage for stage in runner.pipeline.stages}
    words = {name for name in waits if isinstance(components.wherever(stages[name].uses[0]), Decoder)} - WITHOUT_WORDS
    return {name: ticks for name, ticks in waits.items() if name not in words}


@pytest.mark.parametrize("family", [family.name for family in (*FAMILIES, *WIDER)])
def test_ranks_draw_what_they_draw_on_cpus_and_no_step_makes_the_host_wait(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    divisions = DIVISIONS.get(family, EVERYWHERE)
    play(on_rank, Scene(family, divisions, tiny(family), tmp_path), ranks=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"waits-{rank}.json").read_text())
        assert len(found) == len(divisions)
        for parallel, loops in found.items():
            for loop, ticks in loops.items():
                assert ticks, f"no tick took only steps of {loop} ({parallel})"
                assert [waits for _, waits in ticks if waits] == [], f"rank {rank}, {parallel}, {loop}"
