"""Pools of which one has several ranks: what they make is what one process makes, but for the last bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.config import Config, ParallelConfig
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.output import Failed, Result
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.deploy.placing import read
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import present, start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.models import REGISTRY
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline.stage import Loop
from omnimuse.worker import build
from tests.checkpoints import bagel, qwen3
from tests.dist import test_pools
from tests.dist.test_pools import Told, at_step, expected
from tests.dist.test_telling_together import TELLERS, TWO, Teller, check, likeliest, shared, spread, told
from tests.invariants import test_writing
from tests.invariants.conftest import Subject
from tests.once import Once
from tests.processes import alive, children
from tests.turns import in_turns

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

CLOSE = 1e-4
"""By how much of their size pictures may differ: ranks add up in another order."""
STATION = "deploy.station"
AXES = {"tensor": ParallelConfig(tensor=2), "ulysses": ParallelConfig(ulysses=2), "cfg": ParallelConfig(cfg=2)}


def around(folder: Path, parallel: ParallelConfig) -> DeployConfig:
    """Three pools: what comes before the loops, these, on several ranks, and what comes behind them."""
    stages = REGISTRY.pipeline(Checkpoint(folder).arch).stages
    loops = [number for number, stage in enumerate(stages) if isinstance(stage, Loop)]
    names, first, after = [stage.name for stage in stages], loops[0], loops[-1] + 1
    parts = (names[:first], names[first:after], names[after:])
    here = PoolConfig("here", ("*",), connector="local")
    pools = (replace(here, name="before"), PoolConfig("loops", ("*",), parallel=parallel), replace(here, name="behind"))
    return DeployConfig(
        tuple(replace(pool, stages=tuple(part)) for pool, part in zip(pools, parts, strict=True) if part)
    )


def made(config: Config, asks: Sequence[Ask]) -> list[Result]:
    """What the pools of `config` make of all asks together."""
    with closing(Pools(config)) as pools:
        ends = [each.end() for each in [Told(pools, ask) for ask in asks]]
        failed = [end.error for end in ends if isinstance(end, Failed)]
        assert not failed, failed
        return [present(end.result, pools.door.limits) for end in ends if not isinstance(end, Failed)]


def told_in_pools(config: Config, asks: Sequence[Ask]) -> dict[str, torch.Tensor]:
    """What `told` gives, of pools."""
    sure = likeliest(asks)
    found = made(config, [*asks, *sure])
    by_no_chance = spread(found[len(asks) :])
    return spread(found[: len(asks)]) | {f"by no chance, {name}": each for name, each in by_no_chance.items()}


# -- a drawing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    """The demo model in one process."""
    engine = start(test_pools.CONFIG)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=in_turns([*AXES], "tensor", str))
def group(request: pytest.FixtureRequest) -> Iterator[Pools]:
    """The same in three pools, of which the one that draws has two ranks."""
    before, draw, behind = test_pools.POOLS
    placed = (
        replace(before, replicas=1),
        replace(draw, parallel=AXES[request.param]),
        replace(behind, connector="local"),
    )
    pools = Pools(replace(test_pools.CONFIG, deploy=DeployConfig(placed)), faults=test_pools.FAULTS)
    yield pools
    assert not any(seat.streams for seats in pools.group.seats for seat in seats), "nothing is left of what has ended"
    pids = children(os.getpid(), STATION)
    pools.close()
    assert not any(map(alive, pids)), "no rank is left"


def near(found: torch.Tensor, other: torch.Tensor) -> bool:
    return float((found - other).norm()) <= CLOSE * float(other.norm())


def test_a_pool_of_two_ranks_draws_what_one_process_draws(whole: Engine, group: Pools) -> None:
    asks = [test_pools.ask("a red circle"), test_pools.ask("a blue square", 8, num_outputs_per_prompt=2)]
    for told_, ask in zip([Told(group, ask) for ask in asks], asks, strict=True):
        assert near(told_.drawn(), expected(whole, ask))
    assert len(children(os.getpid(), STATION)) == 2, "both ranks of the pool, and nothing else"


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_of_a_pool_has_anything_of_other_pools(rank: int) -> None:
    config = replace(test_pools.CONFIG, parallel=TWO, deploy=DeployConfig(test_pools.POOLS, pool="denoise"))
    under = build.run(build.begin(config, Mesh.planned(TWO, rank)), build.SHAPES)
    assert sorted(under.here) == ["transformer", "vae"], "what reads is in another pool"
    under.resources.close()


def test_what_fails_on_both_ranks_ends_its_request_alone(whole: Engine, group: Pools, tmp_path: Path) -> None:
    pids = children(os.getpid(), STATION)
    good = Told(group, test_pools.ask("a red circle"))
    assert isinstance(Told(group, test_pools.ask("a red triangle")).end(), Failed)
    lost = Told(group, test_pools.ask("a red circle", loras=[f"{tmp_path}/none.safetensors"])).end()
    assert isinstance(lost, Failed) and isinstance(lost.error, RequestError)
    assert near(good.drawn(), expected(whole, test_pools.ask("a red circle")))
    assert children(os.getpid(), STATION) == pids


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_costs_its_pool_which_is_started_again_and_draws_the_same(
    whole: Engine, group: Pools, rank: int
) -> None:
    pids, lost = children(os.getpid(), STATION), group.lost["denoise"]
    asks = [test_pools.ask("a red circle", 5), test_pools.ask("a blue circle", 6)]
    first = Told(group, asks[0], at_step(2, lambda: os.kill(pids[rank], signal.SIGKILL)))
    second = Told(group, asks[1])
    for each, ask in zip((first, second), asks, strict=True):
        assert near(each.drawn(), expected(whole, ask))
    after = children(os.getpid(), STATION)
    assert group.lost["denoise"] > lost and len(after) == 2 and not set(after) & set(pids)


# -- what writes, speaks and answers -----------------------------------------------------------------------------------


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("teller", "parallel"),
    [
        *(pytest.param(each, TWO, id=each.name, marks=pytest.mark.shows("pools", "tensor")) for each in TELLERS),
        pytest.param(
            TELLERS[0], ParallelConfig(pipe=2), id=f"{TELLERS[0].name}-pipe", marks=pytest.mark.shows("pools", "pipe")
        ),
    ],
)
def test_a_pool_of_two_ranks_tells_what_one_process_tells(teller: Teller, parallel: ParallelConfig, once: Once) -> None:
    folder = once.folder(f"shared {teller.name}", teller.build)
    asks = teller.asks(folder)
    config = replace(shared(folder, ParallelConfig()), deploy=around(folder, parallel))
    check(told_in_pools(config, asks), told(folder, asks, ParallelConfig()))


@pytest.mark.parametrize(
    ("keys", "several"),
    [
        (2, TWO),
        pytest.param(1, TWO, marks=pytest.mark.costly),
        pytest.param(2, ParallelConfig(tensor=3), marks=pytest.mark.costly),
        pytest.param(2, ParallelConfig(pipe=2), marks=pytest.mark.costly),
        pytest.param(2, ParallelConfig(pipe=2, tensor=2), marks=pytest.mark.costly),
    ],
    ids=str,
)
def test_what_is_remembered_goes_between_pools_of_one_rank_and_of_several(
    keys: int, several: ParallelConfig, tmp_path: Path
) -> None:
    """Every pool has the language model; its keys and values go from several ranks, of which some may have the same
    ones and each those of some layers, to one, and to several again.
    """
    folder = bagel.build(tmp_path / "bagel", heads=4, shared=keys)
    asks = Subject(bagel.WIDER[0], folder).asks()
    placed = (
        PoolConfig("read", ("look", "compose", "read"), parallel=several),
        PoolConfig("write", ("write", "read thoughts"), connector="local"),
        PoolConfig("draw", ("*",), parallel=several),
    )
    config = replace(shared(folder, ParallelConfig()), deploy=DeployConfig(placed))
    check(told_in_pools(config, asks), told(folder, asks, ParallelConfig()))


# -- files and refusals ------------------------------------------------------------------------------------------------

THINKER = {"stage_id": 0, "final_output": True, "final_output_type": "text"}
ON_TWO = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.8, "distributed_executor_backend": "mp"}
FILES: dict[str, dict[str, Any]] = {
    "older": {"stage_args": [{**THINKER, "runtime": {"devices": "cpu,cpu"}, "engine_args": ON_TWO}]},
    "newer": {"stages": [{"stage_id": 0, "devices": "cpu,cpu", **ON_TWO}]},
    "ours": {"pools": [{"name": "all", "stages": "*", "parallel": {"tensor": 2}}]},
}


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("schema", FILES)
def test_a_file_that_says_ranks_is_honoured_in_every_schema(schema: str, once: Once) -> None:
    folder = once.folder("qwen3", qwen3.build)
    asks = [test_writing.ask(qwen3.WRITERS[0], index, max_tokens=6) for index in range(2)]
    config = replace(shared(folder, ParallelConfig()), deploy=read(FILES[schema]))
    check(told_in_pools(config, asks), told(folder, asks, ParallelConfig()))


@pytest.mark.costly(turns=3)
def test_ranks_that_a_model_cannot_have_are_refused_with_the_pool_and_what_to_do() -> None:
    def refused(parallel: ParallelConfig, pool: ParallelConfig) -> str:
        placed = (test_pools.POOLS[0], replace(test_pools.POOLS[1], parallel=pool), test_pools.POOLS[2])
        with pytest.raises(ConfigError) as error:
            Pools(replace(test_pools.CONFIG, parallel=parallel, deploy=DeployConfig(placed)))
        return str(error.value)

    assert "pool denoise: parallel tensor=4 cannot be" in refused(ParallelConfig(), ParallelConfig(tensor=4))
    assert "which pool would have several ranks (tensor=2)" in refused(TWO, ParallelConfig())
