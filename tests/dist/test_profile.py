"""A recording of an engine shows what each of its ranks computed."""

from __future__ import annotations

import gzip
import json
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


def on_rank(rank: int, folder: Path) -> None:
    """Rank 0 draws before, during and after a recording; rank 1 follows."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    model = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")
    try:
        engine = start(Config(model, parallel=ParallelConfig(cfg=2), host=HostConfig(threads=1)))
    except SystemExit:
        return
    for name in ("first", "second"):
        engine.recordings.begin()
        submit(engine, ASK)
        drain(engine)
        merge(engine.recordings.end(folder / f"{name}.json.gz"), folder / f"{name}.json.gz")
        submit(engine, ASK)
        drain(engine)
    engine.close()


def computed(events: list[dict[str, Any]], pid: object) -> set[str]:
    return {event["name"] for event in events if event["pid"] == pid and event.get("cat") == "cpu_op"}


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_a_recording_has_every_rank_in_one_file(tmp_path: Path) -> None:
    play(on_rank, tmp_path, ranks=2)
    assert sorted(path.name for path in tmp_path.glob("*.gz")) == ["first.json.gz", "second.json.gz"]
    for name in ("first", "second"):
        events = json.loads(gzip.decompress((tmp_path / f"{name}.json.gz").read_bytes()))["traceEvents"]
        named = {e["args"]["name"]: e["pid"] for e in events if e.get("name") == "process_name"}
        ranks = [next(pid for called, pid in named.items() if called.startswith(f"rank {rank}: ")) for rank in (0, 1)]
        assert ranks[0] != ranks[1]
        for pid in ranks:
            assert {"aten::addmm", "aten::linear"} & computed(events, pid)
        spans = [[e["ts"] for e in events if e["pid"] == pid and e.get("cat") == "cpu_op"] for pid in ranks]
        assert max(map(min, spans)) < min(map(max, spans)), "both computed at the same time"
