"""Pools whose processes others start: an agent that knows the key, by signed sockets; Ray elsewhere, by its store."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.core.config import LaunchConfig, ParallelConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.deploy.launch import free_port
from omnimuse.deploy.pools import Pools
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.dist.nodes import cluster as started
from tests.dist.test_pools import CONFIG, POOLS, Told, ask, expected

HOST = "127.0.0.3"
"""An address of this machine that is not the usual one, as of an interface that an operator names."""


def placed(connector: str, options: dict[str, dict[str, str]] | None = None) -> DeployConfig:
    """The drawing is elsewhere, the rest is in this process."""
    read, draw, show = POOLS
    here = [replace(pool, connector="local", replicas=1) for pool in (read, show)]
    away = PoolConfig("draw", draw.stages, connector=connector, elsewhere=True)
    return DeployConfig((here[0], away, here[1]), connectors=options or {})


def group(deploy: DeployConfig, launch: LaunchConfig) -> Pools:
    return Pools(replace(CONFIG, deploy=deploy, parallel=ParallelConfig(launch=launch)))


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    engine = start(CONFIG)
    yield engine
    engine.close()


def test_a_pool_elsewhere_needs_who_starts_it_and_a_way_to_it() -> None:
    with pytest.raises(ConfigError, match="pool draw: it is elsewhere, and all is started here"):
        group(placed("tcp"), LaunchConfig())
    with pytest.raises(ConfigError, match="shared_memory reaches nothing elsewhere"):
        placed("shared_memory")
    with pytest.raises(ConfigError, match=r"anybody who reaches .* could join as an agent"):
        LaunchConfig("agent", "10.0.0.1:7000")
    with pytest.raises(ConfigError, match="names no machine"):
        LaunchConfig("agent", "0.0.0.0:7000", Path("agents.key"))


@pytest.mark.costly("pools elsewhere")
@pytest.mark.timeout(300)
def test_a_pool_at_an_agent_that_knows_the_key_draws_the_same_and_comes_back_when_it_is_lost(
    whole: Engine, tmp_path: Path
) -> None:
    key, port = tmp_path / "agents.key", free_port(HOST)
    key.write_text("a key of more than sixteen letters\n")
    join = ["--join", f"{HOST}:{port}", "--agent-key-file", str(key), "--seats", "1"]
    command = [sys.executable, "-c", "import sys, time\n" + AGENT, *join]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
        try:
            with closing(group(placed("tcp"), LaunchConfig("agent", f"{HOST}:{port}", key))) as pools:
                [seat] = pools.group.seats[1]
                assert seat.replica is not None and seat.replica.pid is None, "it is no child of this process"
                asked = ask("a red circle")
                assert torch.equal(Told(pools, asked).drawn(), expected(whole, asked))
                address = next(iter(pools.group._listening.values())).address
                assert address.startswith(f"{HOST}:")
                seat.replica.kill()
                asked = ask("a blue square", 9)
                assert torch.equal(Told(pools, asked).drawn(), expected(whole, asked))
        finally:
            agent.send_signal(signal.SIGKILL)


AGENT = """
from omnimuse.cli import main
end = time.monotonic() + 60
while time.monotonic() < end:
    if main(["worker", *sys.argv[1:]]) == 0:
        break
    time.sleep(0.3)
"""
"""An agent that may come before its front does."""


# -- Ray ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def left() -> Iterator[None]:
    """Whatever came of a test, the cluster is left after it."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes, of which the second has room."""
    with started() as made:
        made.add_node(num_cpus=2, node_ip_address="127.0.0.4")
        yield made.address


@pytest.mark.usefixtures("left")
@pytest.mark.costly("Ray")
@pytest.mark.timeout(300)
def test_what_is_put_into_rays_store_on_one_node_is_taken_out_on_another_and_gone(cluster: str) -> None:
    import ray

    from omnimuse.deploy.connectors import StoreError
    from omnimuse.deploy.stores import RayStore

    def taken(name: str, key: str) -> tuple[str, str]:
        """What lies in the store under `key`, as its digest, and the node that took it."""
        return hashlib.sha256(RayStore({}, name).take(key)).hexdigest(), str(ray.get_runtime_context().get_node_id())

    store = RayStore({"address": cluster}, "")
    data = bytes(range(256)) * 4096
    store.put("a", memoryview(data))
    assert ray.get(store.board.count.remote()) == 1
    remote: Any = ray.remote(num_cpus=1)(taken)
    digest, node = ray.get(remote.remote(store.name, "a"), timeout=100)
    assert digest == hashlib.sha256(data).hexdigest()
    assert node != ray.get_runtime_context().get_node_id()
    assert ray.get(store.board.count.remote()) == 0
    with pytest.raises(StoreError, match="not there any more"):
        store.take("a")


@pytest.mark.usefixtures("left")
@pytest.mark.costly("Ray")
@pytest.mark.timeout(300)
def test_a_pool_on_another_node_of_ray_draws_the_same_by_way_of_its_store(whole: Engine, cluster: str) -> None:
    launch = LaunchConfig("ray", cluster)
    with closing(group(placed("ray", {"ray": {"address": cluster}}), launch)) as pools:
        [seat] = pools.group.seats[1]
        assert seat.replica is not None and seat.replica.pid is None
        for seed in (7, 8):
            asked = ask("a red circle", seed, num_outputs_per_prompt=3)
            assert torch.equal(Told(pools, asked).drawn(), expected(whole, asked))
