"""Ranks try together whether a request fits: all draw its small ones, and go on together."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Ask
from omnimuse.engine import extents
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import z_image
from tests.dist.test_shortage import FAMILIES, WAYS, config
from tests.invariants.conftest import Subject, drain, outputs, run, submit, taking, tick, with_params
from tests.ranks import play

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]


def on_rank(rank: int, folder: Path, home: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    engine = start(config(folder, ParallelConfig(tensor=2)))  # rank 1 stays in here
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


def tightly(rank: int, what: str, folder: Path, way: str, home: Path) -> None:
    """Only tiles of 64 pixels have room."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    extents.SIDES = (64, 96)  # of this process
    engine = start(config(folder, *WAYS[way]))  # rank 1 stays in here
    request = engine.make_request(of_tiles(what, folder))
    ways = engine.foretelling.extent.ways(request)
    for each in ways:
        engine.foretelling.learn(each)
    engine.space = replace(engine.space, room=engine.foretelling.takes(ways[-1], engine.space.coming))
    found, took = taking(engine, request)
    assert "decoded in tiles of 64 pixels a side, as there is no room for more at once" in found.said
    assert engine.space.room is not None and took < 1.05 * engine.space.room
    save_file({"found": found.output.contiguous()}, home / "found.safetensors")
    engine.close()


def of_tiles(what: str, folder: Path) -> Ask:
    """A picture or a video of several tiles."""
    ask = Subject(FAMILIES[what], folder).ask(0)
    return with_params(ask, width=192, height=192, output_type="pt", num_outputs_per_prompt=1)


@pytest.mark.costly
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", FAMILIES)
def test_ranks_decode_in_the_tiles_that_have_room_as_one_does_in_those_that_are_asked_for(
    what: str, way: str, tmp_path: Path
) -> None:
    folder = FAMILIES[what].build(tmp_path / "model")
    play(tightly, what, folder, way, tmp_path, ranks=2)
    drawn = dict[int | None, torch.Tensor]()
    for tile in (64, WAYS[way][1]):
        with closing(start(config(folder, ParallelConfig(), tile))) as engine:
            [drawn[tile]] = run(engine, of_tiles(what, folder))
    found = load_file(tmp_path / "found.safetensors")["found"]
    assert torch.allclose(found, drawn.pop(64), atol=1e-4)
    assert not any(torch.allclose(found, other, atol=1e-4) for other in drawn.values())
