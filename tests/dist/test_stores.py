"""Edges by way of Mooncake's store and of Yuanrong's, where their packages are installed; their servers run here."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

import pytest

from omnimuse.deploy.connectors import LARGE, Connector, kind_of
from omnimuse.deploy.frames import Put
from omnimuse.deploy.launch import free_port
from omnimuse.deploy.stores import Stored
from tests.unit.deploy.test_connectors import KEY, SOON, Ear, sent

pytestmark = [pytest.mark.dist, pytest.mark.costly("stores")]

HERE = "127.0.0.1"
START = 60.0
"""Seconds in which a server is there."""


def installed(name: str, extra: str) -> Path:
    """The folder of a package, which comes with an extra; without it, nothing of this can be tried."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f'{name} is not installed: pip install "omnimuse[{extra}]"')
    return Path(next(iter(found.submodule_search_locations)))


@contextmanager
def running(log: Path, *command: str) -> Iterator[None]:
    """A server, which is ended; a failed test shows what it said."""
    with log.open("wb") as told:
        made = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, cwd=log.parent)
        try:
            yield
        finally:
            made.terminate()
            made.wait(SOON)
            print(log.read_text(errors="replace")[-2000:])


def opened(kind: str, options: Mapping[str, str]) -> Stored:
    """The connector, when its server answers."""
    end = time.monotonic() + START
    for port in (options[name].rpartition(":")[2].partition("/")[0] for name in options if name != "host"):
        while True:
            try:
                socket.create_connection((HERE, int(port)), 1).close()
                break
            except OSError:
                assert time.monotonic() < end, f"{kind}: nobody listens at {port}"
                time.sleep(0.1)
    made = kind_of(kind, HERE, options)
    assert isinstance(made, Stored)
    return made


@pytest.fixture
def mooncake(tmp_path: Path) -> Iterator[Stored]:
    """Its master, which keeps the metadata, too."""
    program = installed("mooncake", "mooncake") / "mooncake_master"
    try:
        import mooncake.store  # noqa: F401
    except ImportError as problem:
        pytest.skip(f"Mooncake cannot be loaded: {problem}")
    master, metadata, metrics = free_port(HERE), free_port(HERE), free_port(HERE)
    command = [f"--rpc_port={master}", f"--metrics_port={metrics}", "--enable_http_metadata_server=true"]
    command += [f"--http_metadata_server_host={HERE}", f"--http_metadata_server_port={metadata}"]
    with running(tmp_path / "mooncake.log", str(program), *command):
        address = {"metadata_server": f"http://{HERE}:{metadata}/metadata", "master": f"{HERE}:{master}"}
        yield opened("mooncake", address)


@pytest.fixture
def yuanrong(tmp_path: Path) -> Iterator[Stored]:
    """The worker of its data system, and etcd, where that keeps what it knows."""
    installed("yr", "yuanrong")
    if (etcd := shutil.which("etcd")) is None:
        pytest.skip("etcd is not installed, and Yuanrong's data system needs one (Debian: etcd-server)")
    clients, peers, port = free_port(HERE), free_port(HERE), free_port(HERE)
    own = [f"http://{HERE}:{clients}", f"http://{HERE}:{peers}"]
    where = ["--listen-client-urls", own[0], "--advertise-client-urls", own[0], "--listen-peer-urls", own[1]]
    where += ["--initial-advertise-peer-urls", own[1], "--initial-cluster", f"default={own[1]}"]
    worker = [sys.executable, "-c", "from yr.datasystem.cli.command import main; main()"]
    command = ["start", "-w", "--worker_address", f"{HERE}:{port}", "--etcd_address", f"{HERE}:{clients}"]
    command += ["--shared_memory_size_mb", "64"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with running(tmp_path / "etcd.log", etcd, "--data-dir", str(tmp_path / "etcd"), *where):
        started = subprocess.run([*worker, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert started.returncode == 0, f"{started.stdout}{started.stderr}"
        try:
            yield opened("yuanrong", {"host": HERE, "port": str(port)})
        finally:
            ended = [*worker, "stop", "--worker_address", f"{HERE}:{port}"]
            subprocess.run(ended, cwd=tmp_path, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("kind", ["mooncake", "yuanrong"])
def test_what_is_large_goes_through_the_store_itself(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made: Stored = request.getfixturevalue(kind)
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with closing(made.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool = Ear(made.connect(door.address, KEY, "draw-0"))
        front = Ear(met.get(timeout=SOON)[1])
        for number, size in enumerate((LARGE - 1, LARGE, 3 * LARGE + 5)):
            data = os.urandom(size)
            for sender, hearer in ((pool, front), (front, pool)):
                sent(sender.end, data, number)
                frame, blob = hearer.next()
                assert frame == Put("s", number, False, b"head")
                assert blob is not None and bytes(blob.view()) == data
        front.end.end()
        pool.end.end()
