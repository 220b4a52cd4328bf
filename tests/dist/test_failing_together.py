"""Ranks fail together: at a request that fails on all alike, and as an engine when one fails alone or hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import EngineDeadError, ModelError
from omnimuse.core.output import Failed
from omnimuse.engine.engine import Engine, follow
from omnimuse.engine.local import start
from omnimuse.layers.stack import Block, BlockStack, Conditioning, Memory, StackRunner
from omnimuse.pipeline.stage import Context
from omnimuse.worker.build import build
from omnimuse.worker.connect import connect
from omnimuse.worker.runner import Runner
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, outputs, submit
from tests.ranks import begin, play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(180)]

[FAMILY] = [family for family in FAMILIES if family.name == "ZImagePipeline"]
TWO = ParallelConfig(tensor=2)
HASTY = ParallelConfig(tensor=2, wait=4.0)
GUILTY = 8
"""How many steps the request takes that something is done to."""
DECODER = "decoder"


class Fault:
    """A stack runner that does `harm` before the blocks of the guilty request, from its second step on."""

    def __init__(self, inner: StackRunner, harm: Callable[[], None]) -> None:
        self.inner = inner
        self.harm = harm

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        if memories is None or any(memory.steps == GUILTY and memory.step for memory in memories):
            self.harm()
        return self.inner(blocks, hidden, cond, memories)

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)


def fail() -> None:
    raise ArithmeticError("this block is broken")


def die() -> None:
    os._exit(0)


def hang() -> None:
    """Stand still for longer than ranks wait, and then be gone."""
    time.sleep(3 * HASTY.wait)
    os._exit(0)


def config(folder: Path, parallel: ParallelConfig) -> Config:
    return Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=parallel,
        schedule=ScheduleConfig(tier="fast", company="always"),
        host=HostConfig(threads=1),
    )


def engine_with(folder: Path, stack: str, harm: Callable[[], None] | None, parallel: ParallelConfig = TWO) -> Engine:
    """An engine over two ranks, of which this one has a fault in its stack; SystemExit where rank 0 was followed."""
    chosen = config(folder, parallel)
    mesh = connect(chosen.parallel)
    built = build(chosen, mesh)
    runner = Runner(built.pipeline, chosen.schedule, built.resources)
    if harm is not None:
        arm(built.pipeline.ctx, stack, harm)
    if not mesh.is_leader:
        follow(runner)
        raise SystemExit(0)
    return Engine(runner, built.door)


def arm(ctx: Context, stack: str, harm: Callable[[], None]) -> None:
    """Have this rank do `harm` in a stack of its network, or where it decodes a picture."""
    if stack == DECODER:
        ctx.network("vae").get_submodule(stack).register_forward_pre_hook(lambda *_: harm())
        return
    part = ctx.network("transformer").get_submodule(stack)
    assert isinstance(part, BlockStack)
    part.runner = Fault(part.runner, harm)


def guilty(folder: Path, engine: Engine) -> tuple[str, str]:
    """Two requests, the first of which is harmed."""
    subject = Subject(FAMILY, folder)
    first, second = submit(engine, subject.ask(0, num_inference_steps=GUILTY), subject.ask(1))
    return first, second


def failed_alike(rank: int, folder: Path) -> None:
    engine = engine_with(folder, "layers", fail)
    bad, good = guilty(folder, engine)
    events = drain(engine)
    [ended] = [event for event in events if isinstance(event, Failed)]
    assert ended.request_id == bad and isinstance(ended.error, ModelError)
    outputs(events, good)
    engine.close()


def failed_alone(rank: int, folder: Path) -> None:
    harmed(folder, "layers", fail if rank else None)


def failed_alone_before_the_loop(rank: int, folder: Path) -> None:
    harmed(folder, "context_refiner", fail if rank else None)


def was_killed(rank: int, folder: Path) -> None:
    harmed(folder, "layers", die if rank else None)


def was_killed_before_the_loop(rank: int, folder: Path) -> None:
    harmed(folder, "context_refiner", die if rank else None)


def was_killed_in_a_stage(rank: int, folder: Path) -> None:
    """Decoding asks nothing of the others: they may finish what they have, and find out at the next request."""
    engine = engine_with(folder, DECODER, die if rank else None)
    ask = Subject(FAMILY, folder).ask(0, output_type="pt")
    submit(engine, ask)
    events = drain(engine)
    if engine.dead is None:
        submit(engine, ask)
        events += drain_until_dead(engine)
    failed = [event for event in events if isinstance(event, Failed)]
    assert failed and all(isinstance(event.error, EngineDeadError) for event in failed)


def was_killed_while_it_loaded(rank: int, folder: Path) -> None:
    chosen = config(folder, TWO)
    if rank:
        connect(chosen.parallel)
        die()
    with pytest.raises(EngineDeadError, match="a rank is gone before the engine started"):
        start(chosen)


def hung_in_a_forward(rank: int, folder: Path) -> None:
    harmed(folder, "layers", hang if rank else None, HASTY)


def hung_before_the_loop(rank: int, folder: Path) -> None:
    harmed(folder, "context_refiner", hang if rank else None, HASTY)


def hung_while_it_loaded(rank: int, folder: Path) -> None:
    chosen = config(folder, HASTY)
    if rank:
        connect(chosen.parallel)
        hang()
    with pytest.raises(EngineDeadError, match=r"takes longer to load than ranks wait .* --rank-wait"):
        start(chosen)


def harmed(folder: Path, stack: str, harm: Callable[[], None] | None, parallel: ParallelConfig = TWO) -> None:
    """The engine ends for everybody, on this rank too, and nobody is told that a request is to blame."""
    if harm is not None:
        with pytest.raises(EngineDeadError):
            engine_with(folder, stack, harm, parallel)
        return
    engine = engine_with(folder, stack, None, parallel)
    ids = guilty(folder, engine)
    events = drain_until_dead(engine)
    assert {event.request_id for event in events if isinstance(event, Failed)} == set(ids)
    assert all(isinstance(event.error, EngineDeadError) for event in events if isinstance(event, Failed))


def drain_until_dead(engine: Engine) -> list[Any]:
    events: list[Any] = []
    for _ in range(100):
        if engine.dead is not None:
            return events
        events += engine.tick()
    raise AssertionError("the engine lives on")


def could_not_start(rank: int, folder: Path) -> None:
    if rank:
        [file] = (folder / "transformer").glob("*.safetensors")
        copy = folder.parent / "broken"
        copy.mkdir()
        for each in folder.iterdir():
            (copy / each.name).symlink_to(each)
        (copy / "transformer").unlink()
        (copy / "transformer").mkdir()
        (copy / "transformer" / "config.json").symlink_to(folder / "transformer" / "config.json")
        (copy / "transformer" / file.name).write_bytes(file.read_bytes()[:-1000])
        with pytest.raises(ModelError):
            start(config(copy, TWO))
        return
    with pytest.raises(EngineDeadError, match="rank 1 could not start: ModelError"):
        start(config(folder, TWO))


def failed_behind_its_build(rank: int, folder: Path) -> None:
    if rank:
        with patch("omnimuse.engine.local.bounded", side_effect=KeyError("no such room")), pytest.raises(KeyError):
            start(config(folder, TWO))
        return
    with pytest.raises(EngineDeadError, match="rank 1 could not start: KeyError: 'no such room'"):
        start(config(folder, TWO))


Scene = tuple[Callable[[int, Path], None], ...]
"""What is played in one start of two ranks: after the last part, they cannot talk any more or have ended."""
QUICK: dict[str, Scene] = {
    "one could not start, nor behind its build, and in the next engine both failed alike": (
        could_not_start,
        failed_behind_its_build,
        failed_alike,
    ),
    "one was killed": (was_killed,),
}
IN_VAIN: dict[str, Scene] = {
    "one failed alone": (failed_alone,),
    "one failed alone before the loop": (failed_alone_before_the_loop,),
    "one hung in a forward": (hung_in_a_forward,),
    "one hung before the loop": (hung_before_the_loop,),
    "one hung while it loaded": (hung_while_it_loaded,),
    "one was killed before the loop": (was_killed_before_the_loop,),
    "one was killed in a stage": (was_killed_in_a_stage,),
    "one was killed while it loaded": (was_killed_while_it_loaded,),
}
"""Those in which a rank waits for as long as it may, and those of rarer places."""


def on_rank(rank: int, scene: Scene, folder: Path, meeting: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    try:
        for part in scene:
            part(rank, folder)
    except SystemExit:
        pass
    os._exit(0)  # groups that are broken take their time to go


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny(FAMILY.name)


@pytest.mark.parametrize("scene", QUICK)
def test_ranks_fail_together(scene: str, folder: Path, tmp_path: Path) -> None:
    play(on_rank, QUICK[scene], folder, tmp_path / "meeting", ranks=2)


@pytest.mark.costly
def test_ranks_fail_together_where_one_waits_in_vain(folder: Path, tmp_path: Path) -> None:
    """All of them at once: they wait, and compute next to nothing."""
    ends = {name: begin(on_rank, scene, folder, tmp_path / name, ranks=2) for name, scene in IN_VAIN.items()}
    wrong = list[Exception]()
    for name, end in ends.items():
        try:
            end()
        except ProcessException as error:
            error.add_note(name)
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("not all ranks failed together", wrong)
