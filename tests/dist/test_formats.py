"""Pools that compute in different number formats: a file says which, what goes over edges is put into that of who goes
on, and every family makes something of it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.config import ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Failed
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.deploy.placing import read
from omnimuse.deploy.pools import Pools
from omnimuse.engine.local import present, start
from omnimuse.worker.find import find, pipeline_for
from omnimuse.worker.part import parts
from tests.checkpoints.families import ALLROUNDERS
from tests.checkpoints.wishes import Family
from tests.dist import test_pools
from tests.dist.test_pools import Told, ask
from tests.dist.test_pools_of_ranks import around
from tests.dist.test_telling_together import TELLERS, Teller, check, shared, spread
from tests.invariants.conftest import Subject, drain, results, run, submit
from tests.once import Once

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

BETWEEN: dict[str, Any] = {"name": "draw", "stages": ["denoise"], "dtype": "bfloat16"}
FILE: dict[str, Any] = {
    "pools": [
        {"name": "read", "stages": list(test_pools.POOLS[0].stages), "connector": "local", "dtype": "auto"},
        BETWEEN,
        {"name": "show", "stages": "*", "connector": "local"},
    ]
}


def _all_of(family: Family, folder: Path) -> list[Ask]:
    return Subject(family, folder).asks()


EVERY = (*TELLERS, *(Teller(each.name, each.build, partial(_all_of, each)) for each in ALLROUNDERS))
"""Whose parts hand over more than texts that were read."""


@pytest.mark.costly(turns=3)
def test_a_file_says_in_which_format_a_pool_computes() -> None:
    engine = start(test_pools.CONFIG)
    [exact], whole = run(engine, ask("a red circle")), engine.space.weights
    engine.close()
    with closing(Pools(replace(test_pools.CONFIG, deploy=read(FILE)))) as pools:
        drawn = Told(pools, ask("a red circle")).drawn()
        assert set(pools.place["dtype"].split("+")) == {"float32", "bfloat16"}
        assert 2 * pools.weights["transformer"][0] == whole["transformer"][0], "that pool alone, and all of it"
        assert pools.weights["vae"][0] == whole["vae"][0] or pools.weights["vae"][0] * 2 == whole["vae"][0]
    assert 0 < float((drawn - exact).norm() / exact.norm()) < 0.1


def in_formats(deploy: DeployConfig, *formats: str) -> DeployConfig:
    """The same pools on threads of this process, in these number formats in turn."""
    pools = (
        replace(pool, dtype=formats[number % len(formats)], connector="local")
        for number, pool in enumerate(deploy.pools)
    )
    return replace(deploy, pools=tuple(pools))


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("teller", EVERY, ids=lambda teller: teller.name)
def test_what_writes_speaks_and_answers_does_so_in_pools_of_any_formats(teller: Teller, once: Once) -> None:
    folder = once.folder(f"shared {teller.name}", teller.build)
    config, asks = shared(folder, ParallelConfig()), teller.asks(folder)
    narrow = replace(config, model=replace(config.model, dtype="bfloat16"))
    engine = start(narrow)
    ids = submit(engine, *asks)
    expected = spread(results(engine, drain(engine, 3000), ids))
    engine.close()
    for formats in (("bfloat16",), ("float32", "bfloat16"), ("bfloat16", "float32")):
        deploy = in_formats(around(folder, ParallelConfig()), *formats)
        with closing(Pools(replace(config, deploy=deploy))) as pools:
            ends = [each.end() for each in [Told(pools, each) for each in asks]]
            failed = [end.error for end in ends if isinstance(end, Failed)]
            assert not failed, failed
            found = spread([present(end.result, pools.door.limits) for end in ends if not isinstance(end, Failed)])
        if len(formats) == 1:
            check(found, expected)
        assert found.keys() == expected.keys()
        assert all(torch.isfinite(each.double()).all() and each.numel() for each in found.values())


def test_a_pipeline_that_says_nothing_of_its_numbers_computes_in_one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(test_pools.CONFIG, deploy=read(FILE))
    spec = find(config).spec
    for stage in {type(stage) for stage in pipeline_for(spec).stages}:
        monkeypatch.setattr(stage, "computed", False)
    with pytest.raises(ConfigError, match=r"cannot compute in bfloat16 and float32: .* use --dtype for all"):
        parts(config, spec)
    one = replace(config, deploy=DeployConfig((PoolConfig("all", ("*",), dtype="bfloat16"),)))
    assert len(parts(one, spec)) == 1
