"""What ranks share is the same to the bit in any company, in the tier "invariant", for every registered pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from omnimuse.core.config import HostConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError
from omnimuse.engine.local import start
from omnimuse.parallel.collectives import summed
from omnimuse.parallel.mesh import TENSOR
from omnimuse.worker.build import build
from omnimuse.worker.connect import connect
from tests.checkpoints.families import SHARING
from tests.dist.test_shared_work import ALLROUND, FLUX, NAMES, TILING, WAN, Z
from tests.invariants.conftest import Subject, with_params
from tests.invariants.test_tiers import INVARIANT, strangers
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]


def divisions(name: str) -> list[ParallelConfig]:
    """How two ranks share the work of a family."""
    tiles = 2 if name in TILING else 1
    return [
        ParallelConfig(tensor=2),
        ParallelConfig(ulysses=2, vae_tiles=tiles),
        ParallelConfig(ring=2, shard=2),
        ParallelConfig(pipe=2),
    ]


def shown(name: str) -> list[pytest.MarkDecorator]:
    axes = [["tensor"], ["ulysses"], ["ring", "shard"], ["pipe"], *([["tiles on ranks"]] if name in TILING else [])]
    return [pytest.mark.shows(*axis, "invariant", "company", families=[name], wishes=True) for axis in axes]


def meet(rank: int, ranks: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)


def on_rank(rank: int, name: str, folder: Path, divided: Sequence[ParallelConfig], meeting: Path) -> None:
    meet(rank, divided[0].ranks, meeting)
    [family] = [family for family in SHARING if family.name == name]
    subject = Subject(family, folder)
    config = subject.config(schedule=INVARIANT, host=HostConfig(threads=1))
    for parallel in divided:
        try:
            engine = start(replace(config, parallel=parallel))
        except SystemExit:
            continue
        output = "pt" if parallel.vae_tiles > 1 else "latent"
        found = strangers(engine, [with_params(ask, output_type=output) for ask in subject.asks()])
        engine.close()
        assert not found, parallel


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=shown(name)) for name in NAMES])
def test_what_two_ranks_draw_is_the_same_in_any_company(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    play(on_rank, name, tiny(name), divisions(name), tmp_path / "meeting", ranks=2)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        (Z, ParallelConfig(tensor=3)),
        (ALLROUND, ParallelConfig(tensor=3)),
        (FLUX, ParallelConfig(ring=3)),
        (WAN, ParallelConfig(ulysses=2, ring=2)),
        (WAN, ParallelConfig(pipe=2, tensor=2)),
        (Z, ParallelConfig(cfg=2, tensor=2)),
    ],
    ids=str,
)
def test_neither_does_it_change_what_more_ranks_draw(
    name: str, parallel: ParallelConfig, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    play(on_rank, name, tiny(name), [parallel], tmp_path / "meeting", ranks=parallel.ranks)


def of_different_minds(rank: int, folder: Path, meeting: Path) -> None:
    meet(rank, 2, meeting)
    parallel = ParallelConfig(tensor=2)
    [family] = [family for family in SHARING if family.name == Z]
    config = replace(Subject(family, folder).config(host=HostConfig(threads=1)), parallel=parallel)
    found = "its products differ" if rank else None
    with patch("omnimuse.worker.steady._unsteady", return_value=found):
        built = build(replace(config, schedule=ScheduleConfig(tier="auto")), connect(parallel))
        [tier] = [choice for choice in built.choices if choice.name == "tier"]
        assert (tier.value, tier.reason) == ("fast", "default, not invariant: its products differ")
        built.resources.close()
        with pytest.raises(ConfigError, match="tier=invariant cannot be: its products differ"):
            build(replace(config, schedule=INVARIANT), connect(parallel))


def test_all_ranks_have_the_tier_or_none(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    play(of_different_minds, tiny(Z), tmp_path / "meeting", ranks=2)


def wherever_it_lies(rank: int, meeting: Path) -> None:
    meet(rank, 3, meeting)
    axis = connect(ParallelConfig(tensor=3)).axis(TENSOR)
    part = torch.randn(1000, 7, generator=torch.Generator().manual_seed(rank))
    whole = summed(axis, part.clone())
    for start_ in (1, 333, 998):
        assert torch.equal(summed(axis, part[start_:].clone()), whole[start_:])


def test_three_ranks_add_up_the_same_wherever_a_row_lies(tmp_path: Path) -> None:
    play(wherever_it_lies, tmp_path / "meeting", ranks=3)
