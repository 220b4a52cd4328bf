"""Ranks that a server starts elsewhere: by an agent that joined it, and by Ray on two nodes, all on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.dist.nodes import cluster as started
from tests.server.whole_server import WholeServer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(240)]
TWO = ("--tensor-parallel-size", "2", "--device", "cpu", "--warm-up", "none", "--threads", "2")


ONE = ("--device", "cpu", "--warm-up", "none", "--threads", "2")


def drawn_by(server: WholeServer, **fields: Any) -> str:
    """A picture, in base64."""
    answer = server.draw(**{"num_inference_steps": 2, "size": "64x64", "seed": 7} | fields)
    assert answer.status == 200, answer.content
    return str(answer.json["data"][0]["b64_json"])


@contextmanager
def agent(address: str, key: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent as another machine would run it."""
    command = [sys.executable, "-m", "omnimuse", "worker", "--join", address, "--agent-key-file", str(key)]
    with log.open("wb") as told:
        process = subprocess.Popen(command, stderr=told)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.costly
def test_a_server_draws_with_a_rank_at_an_agent(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key that both of them know\n")
    options = ("--launcher", "agent", "--launch-address", "127.0.0.1:0", "--agent-key-file", str(key))
    with WholeServer(tmp_path, *TWO, *options) as server:
        address = server.wait_for(r"agents join at 127\.0\.0\.1:\d+").split()[-1]
        with agent(address, key, tmp_path / "agent") as working:
            server.wait_ready()
            drawn_by(server)
            assert server.end() == 0
            assert working.wait(30) == 1
        said = (tmp_path / "agent").read_text()
        assert "rank 1 of 2 runs as process" in said and "is gone; its ranks here were ended" in said


@pytest.mark.costly
def test_what_an_agent_was_drawing_when_it_vanished_is_drawn_by_another_one_to_the_byte(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("a key that both of them know\n")
    options = ("--launcher", "agent", "--launch-address", "127.0.0.1:0", "--agent-key-file", str(key))
    with WholeServer(tmp_path, *ONE, *options) as server, ThreadPoolExecutor(1) as pool:
        address = server.wait_for(r"agents join at 127\.0\.0\.1:\d+").split()[-1]
        with agent(address, key, tmp_path / "first") as first, agent(address, key, tmp_path / "second") as second:
            server.wait_ready()
            undisturbed = drawn_by(server, num_inference_steps=100)
            drawing = pool.submit(drawn_by, server, num_inference_steps=100)
            while not server.ask("/load").json["requests"]:
                assert not drawing.done()
            drawer, other = tmp_path / "first", tmp_path / "second"
            if "runs as process" not in drawer.read_text():
                drawer, other = other, drawer
            (first if drawer.name == "first" else second).kill()
            assert drawing.result() == undisturbed
            assert "runs as process" in other.read_text()
            assert server.end() == 0


@dataclass
class Nodes:
    """A cluster of nodes of loopback, of which all but the first have room for one rank."""

    cluster: Any
    others: list[Any] = field(default_factory=list)
    number: int = 2

    def add(self) -> None:
        """One more node."""
        self.number += 1
        self.others.append(self.cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{self.number}"))

    def lose(self) -> None:
        """The node that has been there for longest is gone."""
        self.cluster.remove_node(self.others.pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A cluster in which there is no room yet."""
    with started() as made:
        yield Nodes(made)


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """The cluster with one node that has room."""
    while len(cluster.others) > 1:
        cluster.lose()
    if not cluster.others:
        cluster.add()
    return cluster


QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.costly("Ray")
def test_a_rank_is_an_actor_on_another_node_of_ray_and_on_a_third_one_when_that_is_lost(
    nodes: Nodes, tmp_path: Path
) -> None:
    options = ("--launcher", "ray", "--launch-address", nodes.cluster.address)
    with WholeServer(tmp_path, *TWO, *options, environment=QUIET) as server:
        server.wait_ready()
        first = drawn_by(server)
        nodes.lose()
        nodes.add()
        server.wait_for("its rank 1 was lost with its actor")
        assert drawn_by(server) == first
        places = re.findall(r"rank 1 runs on node (\w+) of Ray", server.text)
        assert len(places) == 2 and places[0] != places[1]
        assert "niceness" not in server.text
        assert server.end() == 0


@pytest.mark.costly("Ray")
def test_groups_of_one_rank_are_added_on_ray_while_requests_wait_and_one_that_is_lost_comes_back_on_another_node(
    nodes: Nodes, tmp_path: Path
) -> None:
    options = ("--launcher", "ray", "--launch-address", nodes.cluster.address, *ONE)
    grow = ("--max-replicas", "2", "--grow-after", "0.2", "--shrink-after", "1")
    with WholeServer(tmp_path, *options, *grow, environment=QUIET) as server, ThreadPoolExecutor(4) as pool:
        server.wait_ready()
        first = drawn_by(server, num_inference_steps=100)
        drawing = [pool.submit(drawn_by, server, num_inference_steps=100) for _ in range(4)]
        server.wait_for(r"requests wait: 1 worker\(s\) are added to the 1")
        nodes.add()
        server.wait_for("worker 1 is ready")
        nodes.lose()
        server.wait_for("was lost with its actor")
        nodes.add()
        assert {each.result() for each in drawing} == {first}
        places = re.findall(r"rank 0 runs on node (\w+) of Ray", server.text)
        assert len(set(places)) >= 2
        server.wait_for(r"had nothing to do and ends; 1 are left")
        assert server.end() == 0
