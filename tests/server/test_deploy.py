"""`omnimuse serve --deploy FILE`: a worker whose model is spread over processes of its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.processes import alive, children, kill, wait_gone
from tests.server.whole_server import WholeServer, pixels

POOLS = """
pools:
  - name: read
    connector: local
    stages: [encode prompt, encode negative prompt, encode image, draw image latents, init latents]
  - {name: draw, stages: [denoise]}
  - {name: show, connector: local, stages: [decode]}
"""
ASKED = {"seed": 3, "num_inference_steps": 2, "output_format": "png"}


def wait_measured(server: WholeServer, lost: int) -> None:
    """Return when it says so of the pool that draws: workers tell twice a second."""
    while f'omnimuse_pool_restarts_total{{pool="draw"}} {lost}.0' not in server.ask("/metrics").content.decode():
        time.sleep(0.05)


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_a_server_with_its_model_in_pools_draws_through_the_loss_of_one_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(POOLS)
    with WholeServer(tmp_path / "server", "--deploy", str(tmp_path / "pools.yaml")) as server:
        server.wait_ready()
        first = server.draw(**ASKED)
        [worker] = server.workers()
        [pool] = children(worker, "deploy.station")
        wait_measured(server, lost=0)
        kill(pool)
        while (status := server.ask("/readyz")).status == 200:
            time.sleep(0.05)
        assert status.json["reasons"] == ["pool draw is being started again"]
        second = server.draw(**ASKED)
        assert pixels(second) == pixels(first)
        assert alive(worker)
        while server.ask("/readyz").status != 200:
            time.sleep(0.05)
        wait_measured(server, lost=1)
        last = children(worker, "deploy.station")
        assert last and last != [pool]
        assert server.end() == 0
        assert wait_gone([worker, *last])
