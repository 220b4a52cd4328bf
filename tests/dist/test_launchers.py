"""Ranks that a server starts elsewhere: by an agent that joined it, and by Ray on two nodes, all on this machine."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.server.whole_server import WholeServer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]
TWO = ("--tensor-parallel-size", "2", "--device", "cpu", "--warm-up", "none", "--threads", "2")


def drawn_by(server: WholeServer) -> str:
    """A picture, in base64."""
    server.wait_ready()
    answer = server.draw(num_inference_steps=2, size="64x64", seed=7)
    assert answer.status == 200, answer.content
    return str(answer.json["data"][0]["b64_json"])


def test_a_server_draws_with_a_rank_at_an_agent(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key that both of them know\n")
    options = ("--launcher", "agent", "--launch-address", "127.0.0.1:0", "--agent-key-file", str(key))
    with WholeServer(tmp_path, *TWO, *options) as server:
        address = server.wait_for(r"agents join at 127\.0\.0\.1:\d+").split()[-1]
        command = [sys.executable, "-m", "omnimuse", "worker", "--join", address, "--agent-key-file", str(key)]
        with (tmp_path / "agent").open("wb") as log:
            agent = subprocess.Popen(command, stderr=log)
        try:
            drawn_by(server)
            assert server.end() == 0
            assert agent.wait(30) == 1
        finally:
            agent.kill()
            agent.wait()
        said = (tmp_path / "agent").read_text()
        assert "rank 1 of 2 runs as process" in said and "is gone; its ranks here were ended" in said


@dataclass
class Nodes:
    """A cluster of two nodes of loopback, of which only the second has room for a rank."""

    cluster: Any
    second: Any

    def replace(self) -> None:
        """The second node is gone, and there is another one."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.cluster.add_node(num_cpus=1, node_ip_address="127.0.0.4")


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Ray takes 127.0.0.1 for the machine's address in its network, if it has one; so the nodes have others."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # a cluster takes it for its own
    head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield Nodes(cluster, cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3"))
    cluster.shutdown()
    signal.signal(signal.SIGTERM, before)


def test_a_rank_is_an_actor_on_another_node_of_ray_and_on_a_third_one_when_that_is_lost(
    nodes: Nodes, tmp_path: Path
) -> None:
    options = ("--launcher", "ray", "--launch-address", nodes.cluster.address)
    with WholeServer(tmp_path, *TWO, *options, environment={"RAY_USAGE_STATS_ENABLED": "0"}) as server:
        first = drawn_by(server)
        nodes.replace()
        server.wait_for("its rank 1 was lost with its actor")
        assert drawn_by(server) == first
        places = re.findall(r"rank 1 runs on node (\w+) of Ray", server.text)
        assert len(places) == 2 and places[0] != places[1]
        assert server.end() == 0
