"""Pipelines of the contract on two ranks: weights shared by their own layers, and guidance by their own mixin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from omnimuse import Omni, ParallelConfig
from omnimuse.compat.contract.make import refuse_ranks
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.contract.tokens import share_tokens
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_plan import SequenceParallelInput
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.parallel.mesh import Mesh
from tests.checkpoints import flux
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.compat.checkpoints import PLUGIN, renamed
from tests.compat.running import config, on_two_ranks

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]
WISH = next(each for each in FAMILIES if each.kind == "3").wishes[0]
GUIDED = next(wish for wish in flux.FAMILIES[0].wishes if wish.params.true_cfg_scale == 3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("contract") / "tiny", kind="3")


def drawn(folder: Path, parallel: ParallelConfig | None = None) -> torch.Tensor:
    """By an engine that starts its ranks itself."""
    name = str(renamed(folder, "DocumentedPipeline"))
    with Omni(name, plugin=PLUGIN, dtype="float32", device="cpu", parallel=parallel) as omni:
        [found] = omni.generate([WISH.asked], WISH.params, output_type="pt", progress=False)
    assert found.error is None
    picture: torch.Tensor = found.tensors["image"][0]
    return picture


@pytest.mark.costly
def test_two_processes_of_its_own_draw_what_one_draws(folder: Path) -> None:
    torch.testing.assert_close(drawn(folder, ParallelConfig(tensor=2)), drawn(folder), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def two_lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A checkpoint of two lists of blocks, and what diffusers draw of it."""
    folder = flux.build(tmp_path_factory.mktemp("contract") / "two-lists")
    return folder, flux.FAMILIES[0].reference(folder, [GUIDED], "pt")[0]


@pytest.mark.parametrize(
    ("arch", "parallel"),
    [
        ("TwoListsPipeline", ParallelConfig(ring=2)),
        ("TwoListsStepPipeline", ParallelConfig(ulysses=2, shard=2)),
    ],
    ids=["ring", "shard"],
)
def test_tokens_are_shared_as_the_plan_says(
    two_lists: tuple[Path, torch.Tensor], tmp_path: Path, arch: str, parallel: ParallelConfig
) -> None:
    folder, expected = two_lists
    [found], _ = on_two_ranks(config(folder, arch, parallel=parallel), [GUIDED], tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_pipeline_without_a_plan_is_refused_the_axis(folder: Path) -> None:
    pipe = nn.ModuleDict({"transformer": nn.ModuleList([nn.Linear(2, 2)])})
    with pytest.raises(ConfigError, match="no network of ModuleDict has a _sp_plan"):
        share_tokens(pipe, Mesh.planned(ParallelConfig(ulysses=2)))


@pytest.mark.parametrize(
    ("parallel", "why"),
    [
        (ParallelConfig(tensor=2), "no network of Bare has layers that ranks share; build it of the guide's"),
        (ParallelConfig(cfg=2), "Bare makes both predictions itself; derive it from CFGParallelMixin"),
    ],
    ids=str,
)
def test_ranks_that_would_do_the_same_are_refused(parallel: ParallelConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        refuse_ranks("Bare", nn.ModuleDict({"transformer": nn.Linear(2, 2)}), parallel)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"proj": {"input": SequenceParallelInput(split_dim=1, auto_pad=True)}}, r"nothing is padded \(auto_pad\)"),
        ({"proj": {"hidden": SequenceParallelInput(split_dim=1)}}, "names 'hidden', which that part does not take"),
        ({"project": {"input": SequenceParallelInput(split_dim=1)}}, "names 'net.project', which is not there"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(plan: dict[str, object], why: str) -> None:
    kind = type("Planned", (nn.Module,), {"_sp_plan": plan})
    network = kind()
    network.proj = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=why):
        share_tokens(nn.ModuleDict({"net": network}), Mesh.planned(ParallelConfig(ulysses=2)))


def test_tokens_that_ranks_cannot_share_evenly_are_refused() -> None:
    mesh = Mesh.planned(ParallelConfig(ulysses=2))
    base = type("Base", (nn.Module,), {"_sp_plan": {"proj": {"input": SequenceParallelInput(1, 3)}}})
    network = type("Planned", (base,), {})()
    network.proj = nn.Linear(2, 2)
    share_tokens(nn.ModuleDict({"net": network}), mesh)
    with within(Surroundings(torch.device("cpu"), torch.float32, mesh, None)):
        assert network.proj(torch.zeros(1, 4, 2)).shape == (1, 2, 2)
        with pytest.raises(ModelError, match="has 3 tokens, which 2 ranks cannot share evenly"):
            network.proj(torch.zeros(1, 3, 2))
        with pytest.raises(ModelError, match=r"is \(3, 2\), where _sp_plan expects 3 dimensions"):
            network.proj(torch.zeros(3, 2))
