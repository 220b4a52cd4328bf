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


def measured(server: WholeServer) -> str:
    return server.ask("/metrics").content.decode()


@pytest.mark.costly
@pytest.mark.timeout(300)
def test_a_server_with_its_model_in_pools_draws_through_the_loss_of_one_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "pools.yaml").write_text(POOLS)
    with WholeServer(tmp_path / "server", "--deploy", str(tmp_path / "pools.yaml")) as server:
        server.wait_ready()
        first = server.draw(**ASKED)
        [worker] = server.workers()
        [pool] = children(worker, "deploy.station")
        assert 'omnimuse_pool_restarts_total{pool="draw"} 0.0' in measured(server)
        kill(pool)
        while (status := server.ask("/readyz")).status == 200:
            time.sleep(0.05)
        assert status.json["reasons"] == ["pool draw is being started again"]
        second = server.draw(**ASKED)
        assert pixels(second) == pixels(first)
        assert alive(worker)
        while server.ask("/readyz").status != 200:
            time.sleep(0.05)
        assert 'omnimuse_pool_restarts_total{pool="draw"} 1.0' in measured(server)
        last = children(worker, "deploy.station")
        assert last and last != [pool]
        assert server.end() == 0
        assert wait_gone([worker, *last])
