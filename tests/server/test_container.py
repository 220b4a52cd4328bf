"""The image without a container: what it would copy, started with its own command and environment."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server.unix_http import ask
from tests.server.whole_server import WholeServer

ROOT = Path(__file__).resolve().parents[2]
BUILDING = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER"}
RUNNING = {"ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT"}
KEY = secrets.token_hex(32)


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction of the Dockerfile."""
    lines = [line for line in (ROOT / "ops/Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in whole if line.strip())]


def last(word: str) -> str:
    """What the last instruction of that kind says."""
    return [rest for each, rest in instructions() if each == word][-1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Container:
    """A server in the place of a container, with `folder` for its root."""

    folder: Path
    server: WholeServer
    port: int
    metrics: int

    def probe(self) -> int:
        """The exit status of the image's own check of its health."""
        command = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
        assert command[0] == "python"
        there = [word.replace(":8000", f":{self.port}") for word in command[1:]]
        return subprocess.run([sys.executable, *there], capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    source, keys = folder / "source", folder / "keys.txt"
    for copied in (rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")):
        for name in copied[:-1]:
            goal = source / copied[-1] / ("" if (ROOT / name).is_dir() else name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, goal)
    keys.write_text(f"me:{KEY}\n")
    keys.chmod(0o600)
    (folder / "run/omnimuse").mkdir(parents=True)
    port, metrics = free_port(), free_port()
    told = dict(each.split("=", 1) for each in shlex.split(last("ENV")))
    path = told.pop("PATH")
    assert path.startswith("/opt/omnimuse/bin:")
    moved = {"/data": str(folder / "data"), "/run/omnimuse": str(folder / "run/omnimuse"), "/keys.txt": str(keys)}
    for name, value in told.items():
        for place, here in moved.items():
            value = value.replace(place, here)
        told[name] = value.replace(":9100", f":{metrics}")
    assert json.loads(last("ENTRYPOINT")) == ["omnimuse", "serve"]
    environment = {**told, "OMNIMUSE_PORT": str(port), "PYTHONPATH": str(source)}
    with WholeServer(folder, "--warm-up", "none", environment=environment, port=None, data="", source=source) as server:
        yield Container(folder, server, port, metrics)


def test_every_instruction_is_one_and_every_stage_that_is_copied_from_is_there() -> None:
    assert {word for word, _ in instructions()} == BUILDING | RUNNING
    stages = [rest.split()[2] for word, rest in instructions() if word == "FROM" and " AS " in rest]
    sources = [shlex.split(rest)[0] for word, rest in instructions() if word == "COPY" and rest.startswith("--from")]
    assert sources == [f"--from={name}" for name in stages]
    words = [word for word, _ in instructions()]
    assert "RUN" not in words[words.index("USER") :], "what needs root comes before the user who has no rights"


def test_it_is_alive_with_its_own_check_and_lets_nobody_in_without_a_key(container: Container) -> None:
    container.server.wait_ready()
    assert container.probe() == 0
    assert container.server.ask("/v1/models").status == 401
    found = container.server.ask("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert found.status == 200 and found.json["data"][0]["id"] == "omnimuse/shapes"


def test_what_the_image_holds_is_all_that_it_needs_to_draw(container: Container) -> None:
    body = {"prompt": "a red circle", "num_inference_steps": 2}
    drawn = container.server.ask("/v1/images/generations", body, {"Authorization": f"Bearer {KEY}"})
    assert drawn.status == 200, drawn.content
    [worker] = ask(container.folder / "run/omnimuse/admin.sock", "/admin/status")[0].json["workers"]
    found = Path(f"/proc/{worker['pid']}/environ").read_bytes().split(b"\0")
    assert f"PYTHONPATH={container.folder / 'source'}".encode() in found


def test_its_log_is_json_its_measurements_and_its_data_are_where_the_image_says(container: Container) -> None:
    container.server.wait_ready()
    lines = [line for line in container.server.text.splitlines() if line.startswith("{")]
    assert lines and all(json.loads(line) for line in lines)
    with urllib.request.urlopen(f"http://127.0.0.1:{container.metrics}/metrics") as answer:
        assert b"omnimuse_" in answer.read()
    assert any((container.folder / "data/serve").iterdir())


def test_the_signal_of_the_image_ends_it_well(container: Container) -> None:
    assert container.server.end(signal.Signals[last("STOPSIGNAL")]) == 0
    assert container.probe() != 0, "the check sees that it is gone"
