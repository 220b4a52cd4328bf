"""A stage that one of two ranks runs for both: what it writes, notes and raises is the same on either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from omnimuse.core.config import Choice, Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.output import TextRead
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.request import Request
from omnimuse.models import REGISTRY
from omnimuse.parallel.mesh import Mesh
from omnimuse.pipeline import lent
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State
from omnimuse.worker.build import SHAPES, begin, run
from omnimuse.worker.explain import explain
from tests.fakes import context
from tests.ranks import play

NOTE = TextRead("prompt", "reader", 3, 2, "all that it takes")


def value() -> tuple[Any, ...]:
    """Tensors of several kinds, one without elements, and nothing, in one slot."""
    odd = torch.arange(5, dtype=torch.float32).to(torch.bfloat16)
    return (
        torch.arange(6.0).view(2, 3),
        None,
        (odd, torch.tensor([True, False, True])),
        torch.zeros(0, 4),
        torch.tensor(7),
    )


@dataclass(frozen=True)
class Read(Stage):
    """Writes two slots, or fails."""

    failure: Exception | None = None
    writes: tuple[str, ...] = ("text", "mask")
    uses: tuple[str, ...] = ("reader",)
    name: str = "read"

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        assert ctx.mesh.rank == ctx.lent["reader"], "the other one does not run it"
        if self.failure is not None:
            raise self.failure
        for state in states:
            state["text"], state["mask"], state.notes[self.name] = value(), None, NOTE


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, tuple):
        return isinstance(two, tuple) and all(map(same, one, two)) and len(one) == len(two)
    return one is None and two is None


def two_ranks(rank: int, meeting: Path) -> None:
    """Either rank has the reader in its turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = Mesh.from_process_group(ParallelConfig(tensor=2))
    ctx = replace(context(), mesh=mesh)
    request = Request("a", "a circle", None, DiffusionParams(seed=1), FamilyParams())
    for owner in (0, 1):
        ctx = replace(ctx, lent={"reader": owner})
        state = State(request, 0)
        lent.run(Read(), ctx, state)
        assert same(state["text"], value()) and state["mask"] is None and state.notes == {"read": NOTE}
        with pytest.raises(RequestError, match="too long") as failed:
            lent.run(Read(RequestError("too long", "prompt")), ctx, state)
        assert failed.value.param == "prompt"
        with pytest.raises(ModelError if rank != owner else ValueError, match="broken"):
            lent.run(Read(ValueError("broken")), ctx, state)
        lent.run(Read(), ctx, state)
    mesh.close()
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.timeout(120)
def test_what_one_rank_reads_both_have_and_what_it_fails_at_both_raise(tmp_path: Path) -> None:
    play(two_ranks, tmp_path / "meeting", ranks=2)


@pytest.mark.parametrize("family", ["FluxPipeline-dev", "StableDiffusion3Pipeline-3.5-medium"])
def test_every_reader_of_prompts_is_on_one_rank_and_explain_says_on_which(
    family: str, tiny: Callable[[str], Path]
) -> None:
    parallel = ParallelConfig(ulysses=2)
    config = Config(ModelConfig(str(tiny(family)), dtype="float32", device="cpu"), parallel=parallel)
    readers = {name for name in REGISTRY.spec(family.partition("-")[0]).components if name.startswith("text_encoder")}
    found = []
    for rank in (0, 1):
        under = run(begin(config, Mesh.planned(parallel, rank)), SHAPES)
        under.resources.close()
        found.append(readers & set(under.here))
        assert set(under.modules) - set(under.here) <= readers and {"transformer", "vae"} <= set(under.here)
    assert found[0] | found[1] == readers and not found[0] & found[1] and all(found)
    told: dict[tuple[str, str], Choice] = {(each.topic, each.name): each for each in explain(config)}
    for name in readers:
        rank = int(name in found[1])
        assert told["ranks", name].value == f"on rank {rank}"
        assert (told["memory", name].value == "none") == bool(rank)
