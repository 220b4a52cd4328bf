"""A recording of an engine shows what each of its ranks computed."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from omnimuse.core.config import Config, HostConfig, ModelConfig, ParallelConfig
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.local import start
from omnimuse.observe.profile import merge
from tests.invariants.conftest import drain, submit
from tests.ranks import play

pytestmark = pytest.mark.dist

ASK = Ask("a red circle", DiffusionParams(num_inference_steps=2, width=64, height=64, seed=1, guidance_scale=3.0))

APART = Path("apart.json.gz")


def on_rank(rank: int, folder: Path) -> None:
    """Rank 0 draws before, during and after a recording; rank 1 follows, whose folder is another, as on a disk of its
    own.
    """
    os.chdir(folder / f"disk{rank}")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    model = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")
    try:
        engine = start(Config(model, parallel=ParallelConfig(cfg=2), host=HostConfig(threads=1)))
    except SystemExit:
        return
    for path in (folder / "first.json.gz", folder / "second.json.gz", APART):
        engine.recordings.begin()
        submit(engine, ASK)
        drain(engine)
        merge(engine.recordings.end(path), path)
        submit(engine, ASK)
        drain(engine)
    engine.close()


def computed(events: list[dict[str, Any]], pid: object) -> set[str]:
    return {event["name"] for event in events if event["pid"] == pid and event.get("cat") == "cpu_op"}


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_a_recording_has_every_rank_in_one_file(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / f"disk{rank}").mkdir()
    play(on_rank, tmp_path, ranks=2)
    traces = [tmp_path / "disk0" / APART, tmp_path / "first.json.gz", tmp_path / "second.json.gz"]
    assert sorted(tmp_path.rglob("*.json*")) == traces
    for trace in traces:
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        named = {e["args"]["name"]: e["pid"] for e in events if e.get("name") == "process_name"}
        ranks = [next(pid for called, pid in named.items() if called.startswith(f"rank {rank}: ")) for rank in (0, 1)]
        assert ranks[0] != ranks[1]
        for pid in ranks:
            assert {"aten::addmm", "aten::linear"} & computed(events, pid)
        spans = [[e["ts"] for e in events if e["pid"] == pid and e.get("cat") == "cpu_op"] for pid in ranks]
        assert max(map(min, spans)) < min(map(max, spans)), "both computed at the same time"
