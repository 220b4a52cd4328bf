"""`omnimuse serve --deploy FILE` with models that write, speak and film: over HTTP the same bytes as without pools."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import qwen3, qwen3_tts, wan
from tests.processes import children
from tests.server.pooled import placed
from tests.server.whole_server import Answer, WholeServer

pytestmark = [pytest.mark.costly("families in pools over HTTP"), pytest.mark.timeout(400)]


def said(server: WholeServer) -> Any:
    talk = {"model": "default", "messages": [{"role": "user", "content": "a red circle"}], "seed": 4, "max_tokens": 12}
    return good(server.ask("/v1/chat/completions", talk)).json["choices"]


def spoken(server: WholeServer) -> bytes:
    asked = {"model": "default", "input": "a red circle", "voice": "vivian", "response_format": "pcm", "seed": 3}
    return good(server.ask("/v1/audio/speech", asked)).content


def filmed(server: WholeServer) -> bytes:
    asked = {"prompt": "a hill", "size": "32x32", "seconds": "1", "num_inference_steps": 2, "seed": 5}
    video = good(server.ask("/v1/videos", asked)).json
    while video["status"] not in ("completed", "failed"):
        time.sleep(0.05)
        video = server.ask(f"/v1/videos/{video['id']}").json
    assert video["status"] == "completed", video
    return server.ask(f"/v1/videos/{video['id']}/content").content


def good(answer: Answer) -> Answer:
    assert answer.status == 200, answer.content
    return answer


@dataclass(frozen=True)
class Kind:
    """A model, its pools, how it is asked, and how many processes its pools are."""

    build: Callable[[Path], Path]
    pools: tuple[Mapping[str, Any], ...]
    ask: Callable[[WholeServer], Any]
    processes: int


READ = ("encode prompt", "encode negative prompt", "see pictures", "encode pictures", "encode video")
"""What reads what a film is to be like."""
KINDS = {
    "writes": Kind(
        qwen3.build,
        ({"name": "read", "stages": ["read"]}, {"name": "write", "stages": "*", "parallel": {"tensor": 2}}),
        said,
        3,
    ),
    "speaks": Kind(
        qwen3_tts.build,
        ({"name": "talk", "tracks": [0]}, {"name": "sound", "stages": "*", "connector": "tcp"}),
        spoken,
        2,
    ),
    "films": Kind(
        wan.FAMILIES[0].build,
        (
            {"name": "read", "stages": list(READ), "connector": "local"},
            {"name": "draw", "stages": ["init latents", "denoise"]},
            {"name": "show", "stages": "*"},
        ),
        filmed,
        2,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_server_of_a_model_in_pools_answers_with_the_bytes_of_one_process(name: str, tmp_path: Path) -> None:
    kind, found = KINDS[name], list[Any]()
    folder = kind.build(tmp_path / "tiny")
    for number, pools in enumerate(((), kind.pools)):
        place = ("--dtype", "float32", "--device", "cpu", *placed(tmp_path, *map(dict, pools)))
        with WholeServer(tmp_path / f"server{number}", str(folder), *place) as server:
            server.wait_ready()
            found.append(kind.ask(server))
            [worker] = server.workers()
            assert len(children(worker, "deploy.station")) == (kind.processes if pools else 0)
            assert server.end() == 0
    assert found[0] and found[0] == found[1]
