"""Ranks try together whether a request fits: all draw its small ones, and go on together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import z_image
from tests.invariants.conftest import Subject, drain, outputs, run, submit, tick, with_params
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]


def on_rank(rank: int, folder: Path, home: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    config = Config(
        ModelConfig(str(folder), dtype="float32", device="cpu"),
        parallel=ParallelConfig(tensor=2),
        schedule=ScheduleConfig(company="always"),
        host=HostConfig(threads=1),
    )
    engine = start(config)  # rank 1 stays in here
    subject = Subject(z_image.FAMILIES[0], folder)
    large = with_params(subject.ask(0), width=1024, height=1024)
    [alone] = run(engine, subject.ask(1))
    least = engine.runner.working(engine.make_request(large), engine.space.tokens)
    engine.space = replace(engine.space, room=least + 2**20)
    [small] = submit(engine, subject.ask(1))
    events = tick(engine)
    [refused] = submit(engine, large)
    events += drain(engine)
    assert torch.equal(outputs(events, small), alone)
    with pytest.raises(RequestError, match="iB at the least"):
        outputs(events, refused)
    forgotten(engine, subject)
    engine.close()
    (home / "whole").touch()


def forgotten(engine: Engine, subject: Subject) -> None:
    """What one rank has forgotten and another has not, only one of them would read again, and both would wait."""
    engine.space = replace(engine.space, room=2**40)
    [before] = run(engine, subject.ask(0))
    there, request = engine.runner.memo.bytes, engine.make_request(subject.ask(1))
    engine.space = replace(engine.space, room=engine.foretelling.at_most(request, 0).most)
    engine.submit(request)
    drain(engine)
    assert engine.runner.memo.bytes < there
    [again] = run(engine, subject.ask(0))
    assert torch.equal(before, again)


def test_ranks_try_small_requests_together_and_refuse_what_never_fits(z_image_folder: Path, tmp_path: Path) -> None:
    play(on_rank, z_image_folder, tmp_path, ranks=2)
    assert (tmp_path / "whole").exists()
