"""Compiled blocks whose tokens ranks share: the same numbers, and no more code for more rows or other sizes.

And blocks whose weights or layers they share, of what writes, speaks and answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from omnimuse.core.config import CompileConfig, Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.request import Ask
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.worker.build import build
from omnimuse.worker.connect import connect
from tests.checkpoints.families import FAMILIES
from tests.compiling import Counter, set_innermost
from tests.dist.test_telling_together import TELLERS, Teller, check, told
from tests.invariants.conftest import Subject
from tests.invariants.test_compiled_telling import FORMS, PIECES
from tests.once import Once
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

ROUNDS = (((0,), (0, 0), (1, 0), (1, 1, 1)), ((2,), (2, 2), (0,) * 4, (1,) * 5, (0, 1, 2, 0, 1, 2)))
"""Wishes in flight together: of two sizes, alone and in company, and then of another one, and in larger company."""


@dataclass(frozen=True)
class Scene:
    """A family shared out in several ways, where its checkpoint is, and where ranks meet and leave what they found."""

    family: str
    parallels: tuple[ParallelConfig, ...]
    checkpoint: Path
    folder: Path

    def config(self, parallel: ParallelConfig) -> Config:
        return Config(
            ModelConfig(str(self.checkpoint), dtype="float32", device="cpu"),
            parallel=parallel,
            schedule=ScheduleConfig(tier="fast", company="always"),
            host=HostConfig(threads=1),
        )


def on_rank(rank: int, scene: Scene) -> None:
    """Every rank leaves what it found, for each way of sharing."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scene.folder}/meeting", rank=rank, world_size=2)
    found = [compiled_twice(scene, parallel) for parallel in scene.parallels]
    (scene.folder / f"found-{rank}").write_text(json.dumps(found))


def compiled_twice(scene: Scene, parallel: ParallelConfig) -> tuple[list[int], float]:
    """A step by plain blocks and by compiled ones: how many graphs there were after each round, and the worst error."""
    torch._dynamo.reset()
    mesh = connect(parallel)
    built = build(scene.config(parallel), mesh)
    [family] = [family for family in FAMILIES if family.name == scene.family]
    subject, pipeline = Subject(family, scene.checkpoint), built.pipeline
    counter, graphs, worst = Counter(), [], 0.0

    def step(wishes: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
        asks = [subject.ask(wish, seed=seed) for seed, wish in enumerate(wishes)]
        states = [state for ask in asks for state in pipeline.states(built.door.make_request(ask, 0.0, 0))]
        pipeline.prepare_encode(states)
        return pipeline.denoise_step(states)

    expected = {wishes: step(wishes) for wishes in (each for round in ROUNDS for each in round)}
    for network in pipeline.ctx.components.values():
        for stack in network.stacks().values() if isinstance(network, Network) else ():
            set_innermost(stack, CompiledRunner(stack.blocks(), counter, whole=False))
    for round in ROUNDS:
        for wishes in round:
            for plain, found in zip(expected[wishes], step(wishes), strict=True):
                for branch, prediction in plain.items():
                    worst = max(worst, float((found[branch] - prediction).norm() / prediction.norm()))
        graphs.append(counter.graphs)
    mesh.close()
    built.resources.close()
    return graphs, worst


@pytest.mark.costly
@pytest.mark.parametrize(
    ("family", "parallels"),
    [
        ("ZImagePipeline", (ParallelConfig(ulysses=2), ParallelConfig(ulysses=2, shard=2))),
        ("FluxPipeline-dev", (ParallelConfig(ring=2),)),
    ],
    ids=["ulysses", "ring"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_blocks_are_compiled_between_exchanges_and_once_for_all_rows_and_sizes(
    family: str, parallels: tuple[ParallelConfig, ...], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """As many graphs, too, where weights are in parts."""
    play(on_rank, Scene(family, parallels, tiny(family), tmp_path), ranks=2)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found-{rank}").read_text())
        assert all(worst <= 1e-5 for _, worst in found), found
        [count] = {count for graphs, _ in found for count in graphs}
        assert count > 0


def compiled_telling(rank: int, parallel: ParallelConfig, folder: Path, asks: list[Ask], file: Path) -> None:
    """Rank 0 drives an engine of compiled blocks, the others follow it; each leaves how many graphs it had."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}.meeting", rank=rank, world_size=parallel.ranks)
    counter = Counter()
    with patch("omnimuse.worker.build.CompiledRunner", partial(CompiledRunner, backend=counter)):
        try:
            found = told(folder, asks, parallel, compiled=CompileConfig("blocks"))
            save_file({name: each.contiguous() for name, each in found.items()}, file)
        finally:
            file.with_name(f"graphs-{rank}").write_text(str(counter.graphs))


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallel", [ParallelConfig(tensor=2), ParallelConfig(pipe=2)], ids=["tensor", "pipe"])
@pytest.mark.parametrize("teller", TELLERS, ids=lambda teller: teller.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_that_ranks_share_tell_what_others_do(
    teller: Teller, parallel: ParallelConfig, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(f"shared {teller.name}", teller.build)
    asks, file = teller.asks(folder), tmp_path / "told.safetensors"
    play(compiled_telling, parallel, folder, asks, file, ranks=2)
    check(load_file(file), told(folder, asks, ParallelConfig()))
    graphs = [int((tmp_path / f"graphs-{rank}").read_text()) for rank in (0, 1)]
    assert all(0 < each <= 3 * PIECES * FORMS for each in graphs), f"as of three networks on one: {graphs}"
