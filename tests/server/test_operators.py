"""What an operator does to a server that runs: real processes, the admin plane, unix sockets, a log of JSON lines."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.server.routes.admin import LONGEST
from tests.processes import has_torch
from tests.server.pooled import placed
from tests.server.unix_http import ask
from tests.server.whole_server import START, WholeServer

ADMIN = ("/admin/status", "/admin/drain", "/admin/log-level", "/admin/profile", "/sleep", "/wake_up", "/is_sleeping")


@contextmanager
def watched_server(folder: Path, *options: str) -> Iterator[tuple[WholeServer, Path]]:
    """A server with an admin plane in the file that is returned, and a log of JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    admin = folder / "admin.sock"
    given = ("--admin-address", f"unix:{admin}", "--log-format", "json", "--warm-up", "none", *options)
    with WholeServer(folder, *given) as server:
        server.wait_ready()
        yield server, admin


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WholeServer, Path]]:
    with watched_server(tmp_path_factory.mktemp("watched")) as found:
        yield found


def lines(server: WholeServer) -> list[dict[str, Any]]:
    """The log; what is printed for people is not in it."""
    return [json.loads(line) for line in server.text.splitlines() if line.startswith("{")]


def test_the_admin_plane_tells_of_the_workers_and_is_nowhere_else(watched: tuple[WholeServer, Path]) -> None:
    server, admin = watched
    status, _ = ask(admin, "/admin/status")
    assert status.json["model"] == "omnimuse/shapes" and status.json["log_level"] == "info"
    [worker] = status.json["workers"]
    assert worker["state"] == "ready" and has_torch(worker["pid"])
    assert f"omnimuse: the admin plane is at unix:{admin}\n" in server.text
    for path in ADMIN:
        assert server.ask(path).status == 404 and server.ask(path, {}).status == 404
    assert ask(admin, "/v1/models")[0].status == 404  # and nothing of the public interface is there


def test_the_log_is_json_and_its_level_can_be_changed_while_it_runs(watched: tuple[WholeServer, Path]) -> None:
    server, admin = watched
    server.ask("/livez")
    assert not [line for line in lines(server) if line.get("path") == "/livez"]
    assert ask(admin, "/admin/log-level", {"level": "debug"})[0].json == {"level": "debug"}
    server.ask("/livez")
    server.wait_for('"/livez"')
    assert ask(admin, "/admin/log-level", {"level": "info"})[0].status == 200
    for wrong in ({"level": "loud"}, {"levels": "info"}, {"level": 3}, {}):
        assert ask(admin, "/admin/log-level", wrong)[0].status == 400


def test_a_request_and_a_job_are_told_from_their_acceptance_to_their_end(watched: tuple[WholeServer, Path]) -> None:
    server, _ = watched
    request = server.draw(num_inference_steps=2).headers["x-request-id"]
    job = server.draw(num_inference_steps=2, background=True).json["id"]
    server.wait_for(f'"{job} completed|{job} completed')
    found = [(line["what"], line["id"], line["event"]) for line in lines(server) if "what" in line]
    assert [event for what, name, event in found if name == request] == ["accepted", "completed", "answered"]
    assert [event for what, name, event in found if (what, name) == ("job", job)] == ["accepted", "completed"]
    assert {"time", "level", "logger", "message"} <= lines(server)[0].keys()


def test_a_profile_is_a_trace_of_what_the_worker_computed(watched: tuple[WholeServer, Path]) -> None:
    server, admin = watched
    drawing = threading.Thread(target=lambda: server.draw(num_inference_steps=200))
    drawing.start()
    answer, content = ask(admin, "/admin/profile", {"seconds": 0.5})
    drawing.join(START)
    assert answer.status == 200 and answer.headers["content-type"] == "application/gzip"
    names = {event.get("name") for event in json.loads(gzip.decompress(content))["traceEvents"]}
    assert names & {"aten::mm", "aten::addmm", "aten::linear"}
    assert "diffuse" in names, "the stage"
    assert [name for name in names if re.fullmatch(r"step \d+ of 200", str(name))]
    assert "transformer.layers.0" in names, "a block"
    assert not [path for path in (server.folder / "data" / "spool").iterdir() if path.name.startswith("profile")]
    for wrong in ({"seconds": 0}, {"seconds": 1000}, {"worker": 7}, {"seconds": "long"}, {"minutes": 1}):
        assert ask(admin, "/admin/profile", wrong)[0].status == 400


def test_a_profile_of_the_next_request_has_all_of_it_and_ends_with_it(watched: tuple[WholeServer, Path]) -> None:
    server, admin = watched
    found: list[tuple[Any, bytes]] = []
    recording = threading.Thread(target=lambda: found.append(ask(admin, "/admin/profile", {"requests": 1})))
    began, steps = time.monotonic(), 2
    recording.start()
    while recording.is_alive():  # who comes before the recording was asked for is not in it
        steps += 1
        assert server.draw(num_inference_steps=steps).status == 200
    [(answer, content)] = found
    assert answer.status == 200 and time.monotonic() - began < LONGEST, "its time is not what ended it"
    names = {event.get("name") for event in json.loads(gzip.decompress(content))["traceEvents"]}
    whole = [n for n in range(3, steps + 1) if {f"step {step} of {n}" for step in range(1, n + 1)} <= names]
    assert whole and {"text_encoder.forward", "diffuse", "vae.decode", "transformer.layers.0"} <= names
    for wrong in ({"requests": 0}, {"requests": 101}, {"requests": True}):
        assert ask(admin, "/admin/profile", wrong)[0].status == 400


def test_a_server_that_sleeps_lets_requests_wait_and_draws_the_same_when_it_wakes(
    watched: tuple[WholeServer, Path],
) -> None:
    server, admin = watched
    before = server.draw(num_inference_steps=4, seed=3)
    slept = ask(admin, "/sleep?level=1", {})[0]
    assert slept.status == 200 and slept.json["is_sleeping"] is True and slept.json["bytes"] > 10**7
    assert (
        ask(admin, "/is_sleeping")[0].json
        == {"is_sleeping": True}
        == {"is_sleeping": ask(admin, "/admin/status")[0].json["asleep"]}
    )
    ready = server.ask("/readyz")
    assert ready.status == 503 and "POST /wake_up" in " ".join(ready.json["reasons"])
    answers = []
    drawing = threading.Thread(target=lambda: answers.append(server.draw(num_inference_steps=4, seed=3)))
    drawing.start()
    time.sleep(1)
    assert not answers, "it waits"
    assert ask(admin, "/wake_up", {})[0].json["is_sleeping"] is False
    drawing.join(START)
    assert answers[0].status == 200 and answers[0].json["data"] == before.json["data"]
    for wrong in ("/sleep?level=2", "/sleep?mode=abort", "/wake_up?tags=kv_cache", "/sleep?deep=1"):
        assert ask(admin, wrong, {})[0].status == 400
        path, _, said = wrong.partition("?")
        assert ask(admin, path, dict([said.split("=")]))[0].status == 400, "in a body nothing is passed over, either"
    assert server.ask("/readyz").status == 200


@pytest.mark.costly(turns=3)
def test_a_worker_that_ends_while_it_is_recorded_is_told(watched: tuple[WholeServer, Path]) -> None:
    server, admin = watched
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(admin, "/admin/profile", {"seconds": 30})[0]))
    asking.start()
    time.sleep(0.5)
    os.kill(ask(admin, "/admin/status")[0].json["workers"][0]["pid"], signal.SIGKILL)
    asking.join(START)
    assert answers[0].status == 503
    end = time.monotonic() + START
    while ask(admin, "/admin/status")[0].json["workers"][0]["state"] != "ready" and time.monotonic() < end:
        time.sleep(0.1)
    assert server.draw(num_inference_steps=2).status == 200


@pytest.mark.costly(turns=3)
def test_what_pools_do_not_do_together_is_a_choice_that_is_refused_and_no_worker_that_is_dead(tmp_path: Path) -> None:
    with watched_server(tmp_path, *placed(tmp_path, {"name": "all", "stages": "*"})) as (_, admin):
        for path in ("/admin/profile", "/sleep", "/wake_up"):
            answer, _ = ask(admin, path, {})
            assert answer.status == 400, answer.json
            assert "model in pools has no one engine" in answer.json["error"]["message"]
            assert "ConfigError" not in answer.json["error"]["message"]


@pytest.mark.costly(turns=3)
def test_a_drain_of_the_admin_plane_ends_the_server_and_its_end_is_told(tmp_path: Path) -> None:
    with watched_server(tmp_path) as (server, admin):
        assert ask(admin, "/admin/drain", {})[0].json["draining"] is True
        assert server.process.wait(START) == 0
        told = [line["message"] for line in lines(server)]
        assert any(re.match(r"drained in .* everything in progress is done", line) for line in told)
        assert not admin.exists()


@pytest.mark.costly
def test_a_server_on_a_unix_socket_draws_with_the_line_that_it_prints(tmp_path: Path) -> None:
    place = tmp_path / "art.sock"
    command = ("--uds", str(place), "--warm-up", "none")
    with WholeServer(tmp_path / "server", *command, port=None) as server:
        server.wait_ready()
        assert "page" not in server.text.split("ready in")[1]
        line = re.search(r"curl    (curl.*?)\n\n?  python", server.text, re.S)
        assert line is not None
        subprocess.run(["bash", "-c", line[1]], check=True, cwd=tmp_path, timeout=60)
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.size == (128, 128)
        assert ask(place, "/readyz")[0].status == 200
        server.end()
        assert not place.exists()
