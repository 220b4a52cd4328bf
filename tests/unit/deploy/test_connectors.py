"""Edges between pools: what is sent arrives, by every kind; who has no key is not let in; nothing is left behind."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.deploy.connectors import LARGE, Blob, Connector, Local, SharedMemory, Tcp, kind_of
from omnimuse.deploy.frames import AnyFrame, Close, Credit, Open, Put
from tests.unit.deploy.stand_in_stores import HELD, KVClient, stand_in

KEY = bytes(range(32))
SOON = 20.0
LOST = "lost"


class Ear:
    """Hears what comes over one end."""

    def __init__(self, end: Connector) -> None:
        self.heard: SimpleQueue[Any] = SimpleQueue()
        self.end = end
        end.start(lambda frame, blob: self.heard.put((frame, blob)), lambda: self.heard.put(LOST))

    def next(self) -> tuple[AnyFrame, Blob | None]:
        found: tuple[AnyFrame, Blob | None] = self.heard.get(timeout=SOON)
        return found


@pytest.fixture(params=["local", "shared_memory", "tcp", "mooncake", "yuanrong"])
def ends(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ear, Ear]]:
    """The two ends of an edge: at the front, and in a pool. The last two have stand-ins of their stores."""
    stand_in(monkeypatch)
    if request.param == "local":
        front, pool = Local.pair()
        yield Ear(front), Ear(pool)
        front.end()
        return
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    kind = kind_of(request.param)
    with closing(kind.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool_end = kind.connect(door.address, KEY, "draw-0")
        name, front_end = met.get(timeout=SOON)
        assert name == "draw-0"
        yield Ear(front_end), Ear(pool_end)
        front_end.end()
        pool_end.end()


def sent(end: Connector, data: bytes, number: int = 0) -> None:
    blob = end.room(len(data))
    if blob is not None:
        blob.fill[:] = data
    end.send(Put("s", number, False, b"head"), blob)


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, 3 * LARGE + 5])
def test_what_is_put_arrives_in_either_direction_and_may_be_sent_on(ends: tuple[Ear, Ear], size: int) -> None:
    front, pool = ends
    data = os.urandom(size)
    sent(pool.end, data)
    frame, blob = front.next()
    assert frame == Put("s", 0, False, b"head")
    assert (b"" if blob is None else bytes(blob.view())) == data
    front.end.send(frame, blob)
    _, back = pool.next()
    assert (b"" if back is None else bytes(back.view())) == data


def test_frames_arrive_in_their_order_and_the_end_is_noticed(ends: tuple[Ear, Ear]) -> None:
    front, pool = ends
    frames = [Open("s", {"prompt": "a"}), Credit("s"), Close("s", "ModelError", "why", "prompt", 2.0)]
    for frame in frames:
        front.end.send(frame)
    assert [pool.next()[0] for _ in frames] == frames
    pool.end.end()
    assert front.next() == LOST


def test_a_reader_that_writes_to_what_it_was_given_changes_nothing_for_others(ends: tuple[Ear, Ear]) -> None:
    front, pool = ends
    for size in (100, 2 * LARGE):
        sent(pool.end, bytes(size))
        _, blob = front.next()
        assert blob is not None
        view = blob.view()
        view[:4] = b"mine"
        assert bytes(blob.view()[:4]) == bytes(4)


@pytest.mark.parametrize("kind", [SharedMemory(), Tcp()])
def test_who_does_not_know_the_key_is_not_let_in_and_lets_nobody_in(kind: Any, tmp_path: Path) -> None:
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with closing(kind.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        with pytest.raises(EngineDeadError, match="another key"):
            kind.connect(door.address, bytes(32), "draw-0")
        with pytest.raises(Empty):
            met.get(timeout=0.1)


def test_a_frame_that_is_not_signed_ends_its_edge(tmp_path: Path) -> None:
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with closing(Tcp().listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool = Tcp().connect(door.address, KEY, "draw-0")
        front = Ear(met.get(timeout=SOON)[1])
        pool._socket.sendall(bytes(64))  # type: ignore[attr-defined]
        assert front.next() == LOST
        pool.end()


def test_what_died_with_a_frame_on_its_way_leaves_no_memory_behind(tmp_path: Path) -> None:
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with closing(SharedMemory().listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        before = set(os.listdir("/dev/shm"))
        opened = len(os.listdir("/proc/self/fd"))
        pool = SharedMemory().connect(door.address, KEY, "draw-0")
        _, front = met.get(timeout=SOON)  # never started: it reads nothing
        for number in range(8):
            sent(pool, bytes(LARGE), number)
        heard = Ear(pool)
        front.end()
        assert heard.next() == LOST
        assert set(os.listdir("/dev/shm")) == before
    del pool, front, heard
    assert len(os.listdir("/proc/self/fd")) <= opened + 2


def test_a_kind_that_nobody_brings_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="'pigeon' is not known; use one of local, shared_memory, tcp"):
        kind_of("pigeon")


def test_a_package_brings_a_kind_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "pigeons.py": "from omnimuse.deploy.connectors import Tcp\n\nclass Pigeon(Tcp):\n    pass\n",
        "pigeons-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: pigeons\nVersion: 1\n",
        "pigeons-1.dist-info/entry_points.txt": "[omnimuse.connectors]\npigeon = pigeons:Pigeon\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    kind = kind_of("pigeon")
    with closing(kind.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool, front = Ear(kind.connect(door.address, KEY, "draw-0")), Ear(met.get(timeout=SOON)[1])
        sent(pool.end, b"coo")
        _, blob = front.next()
        assert blob is not None and bytes(blob.view()) == b"coo"
        pool.end.end()
        assert front.next() == LOST and pool.heard.get(timeout=SOON) == LOST


def test_a_stranger_who_says_nothing_is_not_waited_for_by_others(tmp_path: Path) -> None:
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with closing(Tcp().listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        host, _, port = door.address.rpartition(":")
        with socket.create_connection((host, int(port))):
            Tcp().connect(door.address, KEY, "draw-0").end()
            name, end = met.get(timeout=SOON)
            assert name == "draw-0"
            end.end()


@pytest.mark.parametrize("kind", ["mooncake", "yuanrong"])
def test_what_is_large_goes_through_the_store_and_is_not_left_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    made = kind_of(kind)
    with closing(made.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool = made.connect(door.address, KEY, "draw-0")
        front = Ear(met.get(timeout=SOON)[1])
        pool.start(lambda frame, blob: None, lambda: None)
        sent(pool, bytes(LARGE - 1))
        assert front.next()[0] == Put("s", 0, False, b"head") and not HELD
        sent(pool, bytes(LARGE), 1)
        assert front.next()[0] == Put("s", 1, False, b"head") and not HELD
        seen: list[int] = []
        monkeypatch.setattr(f"tests.unit.deploy.stand_in_stores.{_PUT[kind]}", _changed(seen))
        sent(pool, bytes(LARGE), 2)
        assert front.next() == LOST, "what somebody else wrote to the store is not believed"
        assert seen == [LARGE]


_PUT = {"mooncake": "MooncakeDistributedStore.put", "yuanrong": "KVClient.set"}


def _changed(seen: list[int]) -> Any:
    def put(self: object, key: str, value: bytes, *more: object) -> int:
        seen.append(len(value))
        HELD[key] = b"x" + value[1:]
        return 0

    return put


def test_a_store_that_is_not_there_or_has_lost_something_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"pip install \"omnimuse\[yuanrong\]\", which is openyuanrong-datasystem"):
        kind_of("yuanrong").listen(tmp_path, KEY, lambda name, end: None)
    stand_in(monkeypatch)
    with pytest.raises(ConfigError, match="no worker of its data system answers"):
        kind_of("yuanrong", options={"port": "1"}).listen(tmp_path, KEY, lambda name, end: None)
    with pytest.raises(ConfigError, match="cannot be set up"):
        kind_of("mooncake", options={"master": "10.0.0.9:1"}).listen(tmp_path, KEY, lambda name, end: None)
    with pytest.raises(ConfigError, match="'colour' is not honoured; allowed are host, port"):
        kind_of("yuanrong", options={"colour": "red"})
    with pytest.raises(ConfigError, match="tcp has no options"):
        kind_of("tcp", options={"port": "1"})
    monkeypatch.setattr(KVClient, "get", lambda self, keys, convert_to_str, sub_timeout_ms: [None])
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    made = kind_of("yuanrong")
    with closing(made.listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door:
        pool = made.connect(door.address, KEY, "draw-0")
        front = Ear(met.get(timeout=SOON)[1])
        pool.start(lambda frame, blob: None, lambda: None)
        sent(pool, bytes(LARGE))
        assert front.next() == LOST
    assert "what was put into Yuanrong's store is not there" in caplog.text


def test_tcp_listens_where_it_is_told_to_and_nowhere_else(tmp_path: Path) -> None:
    met: SimpleQueue[Connector] = SimpleQueue()
    with closing(Tcp("127.0.0.5").listen(tmp_path, KEY, lambda name, end: met.put(end))) as door:
        host, _, port = door.address.rpartition(":")
        assert host == "127.0.0.5"
        Tcp().connect(door.address, KEY, "draw-0").end()
        met.get(timeout=SOON).end()
        with pytest.raises(OSError, match="refused"):
            Tcp().connect(f"127.0.0.1:{port}", KEY, "draw-0")
    with pytest.raises(ConfigError, match="name an address of this machine"):
        Tcp("203.0.113.9").listen(tmp_path, KEY, lambda name, end: None)


class Network:
    """What lies between two machines: all that comes from either end is brought to the other, while it `works`."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._goal, self.works = (host, int(port)), True
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._meet, daemon=True).start()

    def _meet(self) -> None:
        near, far = self._listener.accept()[0], socket.create_connection(self._goal)
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=self._bring, args=(one, other), daemon=True).start()

    def _bring(self, one: socket.socket, other: socket.socket) -> None:
        with one:
            while data := one.recv(2**16):
                if self.works:
                    other.sendall(data)

    def close(self) -> None:
        self._listener.close()


def test_where_the_network_between_two_ends_brings_nothing_any_more_both_notice_and_idle_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimuse.deploy.connectors.STUCK", 1.0)
    monkeypatch.setattr("omnimuse.deploy.connectors.STILL", 0.2)
    met: SimpleQueue[tuple[str, Connector]] = SimpleQueue()
    with (
        closing(Tcp().listen(tmp_path, KEY, lambda name, end: met.put((name, end)))) as door,
        closing(Network(door.address)) as network,
    ):
        pool = Ear(Tcp().connect(network.address, KEY, "draw-0"))
        front = Ear(met.get(timeout=SOON)[1])
        time.sleep(2.0)
        sent(front.end, b"still here")
        frame, _ = pool.next()
        assert isinstance(frame, Put) and pool.heard.empty() and front.heard.empty()
        network.works = False
        assert pool.heard.get(timeout=SOON) == LOST
        assert front.heard.get(timeout=SOON) == LOST
