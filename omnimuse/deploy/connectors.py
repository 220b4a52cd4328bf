"""Connectors: what carries requests, and what they take along, between the front of a group of pools and each of them.

Both ends speak in frames (`Open`, `Put`, `Credit`, `Close` ...); the tensors of a frame lie beside it in a `Blob`.
Kinds: `shared_memory` (a unix socket; what is large lies in memory without a name, whose descriptor travels, so that
nothing is left behind whoever dies), `tcp` (both ends prove that they know the key, and every frame is signed), `local`
(two ends in one process), those of `stores.py`, by which what is large goes through a store that machines share, and
what packages bring in the entry points `omnimuse.connectors`. No torch.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import mmap
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Protocol

import msgspec

from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.core.plugins import CONNECTORS, brought, loaded
from omnimuse.core.pools import NEAR, DeployConfig
from omnimuse.deploy.frames import Alive, AnyFrame

log = logging.getLogger(__name__)

LARGE = 64 * 2**10
"""Bytes of tensors from which on they lie in shared memory."""
MOST_HEAD, MOST_BLOB = 2**28, 2**40
"""Bytes of a frame and of its tensors, at most: a request brings its pictures in its frame."""
GREETING = 10.0
"""Seconds in which whoever connects has to show that it knows the key."""
STUCK = 60.0
"""Seconds after which an end that takes nothing counts as gone, and an end elsewhere that says nothing."""
STILL = 10.0
"""Seconds without anything to say after which an end elsewhere is told that there is nothing."""
PREFIX = struct.Struct("!IQB")
SIGNATURE = 32
LOOPBACK = "127.0.0.1"
HERE, MAPPED, STORED = 0, 1, 2
"""Where the tensors of a frame are: behind it, in memory whose descriptor comes with it, or in a store."""
NAME = 16
"""Bytes of what something in a store is called."""


class Blob:
    """The bytes of tensors, in memory of this process or in memory without a name that others can map, too.

    It is filled once, through `fill`; `view` gives whoever reads a copy of its own, made page by page when it writes.
    """

    def __init__(self, size: int, *, shared: bool = False, fd: int = -1) -> None:
        self.size = size
        self.fd = os.memfd_create("omnimuse", os.MFD_CLOEXEC) if shared and fd < 0 else fd
        if shared and fd < 0:
            os.truncate(self.fd, size)
        self.fill: memoryview = memoryview(mmap.mmap(self.fd, size))

    def view(self) -> memoryview:
        """The bytes, to be read and, without an effect on others, written to."""
        if self.fd >= 0:
            return memoryview(mmap.mmap(self.fd, self.size, access=mmap.ACCESS_COPY))
        copy = mmap.mmap(-1, self.size)
        copy[:] = self.fill
        return memoryview(copy)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


Hear = Callable[[AnyFrame, Blob | None], None]


class StoreError(OSError):
    """A store does not take, or give back, what it should; the edge ends."""


class Store(Protocol):
    """Holds bytes by name for whoever is given the name; `name` is what others join it by."""

    name: str

    def put(self, key: str, data: memoryview) -> None: ...

    def take(self, key: str) -> memoryview: ...

    def close(self) -> None: ...


class Connector(Protocol):
    """One end of an edge. The verbs never block; `start` names who hears frames, and who hears once that it is gone."""

    def start(self, hear: Hear, lost: Callable[[], None]) -> None: ...

    def send(self, frame: AnyFrame, blob: Blob | None = None) -> None: ...

    def room(self, size: int) -> Blob | None:
        """Where that many bytes of tensors can be written, to be sent; None for none."""
        ...

    def end(self) -> None: ...


class Listening(Protocol):
    """Where ends are met."""

    address: str

    def close(self) -> None: ...


Met = Callable[[str, Connector], None]
"""(the name that somebody gave, the end of an edge to it)"""


class Kind(Protocol):
    """A way to carry frames: `listen` at the front, `connect` in a pool. Both know the `key`."""

    def listen(self, folder: Path, key: bytes, met: Met) -> Listening: ...

    def connect(self, address: str, key: bytes, name: str) -> Connector: ...


class Local:
    """An end in the process where the other is, too."""

    def __init__(self) -> None:
        self.other: Local | None = None
        self._frames: SimpleQueue[tuple[AnyFrame, Blob | None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @staticmethod
    def pair() -> tuple[Local, Local]:
        """Two ends of one edge."""
        here, there = Local(), Local()
        here.other, there.other = there, here
        return here, there

    def start(self, hear: Hear, lost: Callable[[], None]) -> None:
        def listen() -> None:
            while (said := self._frames.get()) is not None:
                hear(*said)
            lost()

        self._thread = threading.Thread(target=listen, name="omnimuse-edge", daemon=True)
        self._thread.start()

    def send(self, frame: AnyFrame, blob: Blob | None = None) -> None:
        assert self.other is not None
        self.other._frames.put((frame, blob))

    def room(self, size: int) -> Blob | None:
        return Blob(size) if size else None

    def end(self) -> None:
        for each in (self, self.other):
            assert each is not None
            each._frames.put(None)


class Wire:
    """An end that is a socket, with a thread that reads and one that writes.

    With a `seal`, every frame is signed with that and its number, and an end of which nothing comes for long has gone:
    the network between the two may have. Else the other end is in this machine, and what is large lies in shared
    memory. With a `store`, it lies there.
    """

    def __init__(
        self, stream: socket.socket, seal: bytes = b"", outwards: bool = True, store: Store | None = None
    ) -> None:
        self._socket, self._seal, self._outwards, self._store = stream, seal, outwards, store
        stream.settimeout(None)
        for limit in (socket.SO_SNDTIMEO, *([socket.SO_RCVTIMEO] if seal else [])):
            stream.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", int(STUCK), 0))
        self._frames: SimpleQueue[tuple[AnyFrame, Blob | None] | None] = SimpleQueue()
        self._ended, self._started = threading.Event(), False

    def start(self, hear: Hear, lost: Callable[[], None]) -> None:
        def read() -> None:
            with suppress(OSError, EOFError, EngineDeadError, msgspec.MsgspecError, struct.error), _told():
                number = 0
                while True:
                    frame, blob = self._read(number)
                    if not isinstance(frame, Alive):
                        hear(frame, blob)
                    number += 1
            self.end()
            writer.join()
            self._socket.close()
            lost()

        self._started = True
        writer = threading.Thread(target=self._write, name="omnimuse-edge", daemon=True)
        writer.start()
        threading.Thread(target=read, name="omnimuse-edge", daemon=True).start()

    def send(self, frame: AnyFrame, blob: Blob | None = None) -> None:
        self._frames.put((frame, blob))

    def room(self, size: int) -> Blob | None:
        return Blob(size, shared=size >= LARGE and not self._seal) if size else None

    def end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._frames.put(None)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            if not self._started:
                self._socket.close()

    def _write(self) -> None:
        number = 0
        with suppress(OSError), _told():  # the reader notices
            while (said := self._next()) is not None:
                self._send(*said, number)
                number += 1
                del said  # the memory is the reader's now
        self.end()

    def _next(self) -> tuple[AnyFrame, Blob | None] | None:
        """What is to be sent; to an end elsewhere something in any case, now and then."""
        try:
            return self._frames.get(timeout=STILL if self._seal else None)
        except Empty:
            return Alive(), None

    def _send(self, frame: AnyFrame, blob: Blob | None, number: int) -> None:
        head = msgspec.msgpack.encode(frame)
        data = b"" if blob is None else blob.fill
        apart = HERE
        if blob is not None and blob.fd >= 0 and not self._seal:
            apart, data = MAPPED, b""
        elif self._store is not None and len(data) >= LARGE:
            apart = STORED
        prefix = PREFIX.pack(len(head), 0 if blob is None else blob.size, apart)
        if self._seal:
            head += self._signed(number, self._outwards, prefix, head, data)
        if apart == STORED:
            assert blob is not None and self._store is not None
            name = secrets.token_bytes(NAME)
            self._store.put(name.hex(), blob.fill)
            data = name
        if apart == MAPPED:
            assert blob is not None
            socket.send_fds(self._socket, [prefix], [blob.fd])
        else:
            self._socket.sendall(prefix)
        self._socket.sendall(head)
        self._socket.sendall(data)

    def _read(self, number: int) -> tuple[AnyFrame, Blob | None]:
        prefix, fds = (b"", []) if self._seal else socket.recv_fds(self._socket, PREFIX.size, 1)[:2]
        if not prefix and not self._seal:
            raise EOFError
        prefix = bytes(prefix) + received(self._socket, PREFIX.size - len(prefix))
        length, size, apart = PREFIX.unpack(prefix)
        if length > MOST_HEAD or size > MOST_BLOB or (apart == MAPPED and not fds):
            raise EngineDeadError(
                f"a frame of {length} and {size} bytes came; at most {MOST_HEAD} are read; start the engine again"
            )
        head = received(self._socket, length)
        signature = received(self._socket, SIGNATURE) if self._seal else b""
        blob = Blob(size, fd=fds[0] if apart == MAPPED else -1) if size else None
        if blob is not None and apart == STORED:
            self._take(blob)
        elif blob is not None and apart == HERE:
            fill(self._socket, blob.fill)
        if self._seal:
            data = b"" if blob is None else blob.fill
            if not hmac.compare_digest(signature, self._signed(number, not self._outwards, prefix, head, data)):
                raise EngineDeadError("a frame came without the signature of the pools; start the engine again")
        return msgspec.msgpack.decode(head, type=AnyFrame), blob

    def _take(self, blob: Blob) -> None:
        """Fill `blob` with what lies in the store under the name that comes."""
        name = received(self._socket, NAME).hex()
        found = b"" if self._store is None else self._store.take(name)
        if len(found) != blob.size:
            raise EngineDeadError(
                f"{blob.size} bytes were put into a store, and {len(found)} came out of it; see that all pools reach "
                "one store, and start the engine again"
            )
        blob.fill[:] = found

    def _signed(self, number: int, outwards: bool, *parts: bytes | memoryview) -> bytes:
        signed = hashlib.blake2b(struct.pack("!Q?", number, outwards), key=self._seal, digest_size=SIGNATURE)
        for part in parts:
            signed.update(part)
        return signed.digest()


def received(stream: socket.socket, count: int) -> bytes:
    """So many bytes; EOFError if the other end is gone before."""
    data = bytearray(count)
    fill(stream, memoryview(data))
    return bytes(data)


def fill(stream: socket.socket, into: memoryview) -> None:
    """Read until `into` is full."""
    at = 0
    while at < len(into):
        if not (count := stream.recv_into(into[at:])):
            raise EOFError
        at += count


@contextmanager
def _told() -> Iterator[None]:
    """Log what a store does not do: everything else that ends an edge is told by who loses it."""
    try:
        yield
    except StoreError as error:
        log.warning("an edge between pools ends: %s", error)
        raise


class Door:
    """Where a kind of sockets is met: everybody who connects has to show that it knows the key, and says its name."""

    def __init__(
        self, listener: socket.socket, address: str, key: bytes, met: Met, sealed: bool, store: Store | None = None
    ) -> None:
        self.address = address
        self._listener, self._key, self._met, self._sealed, self._store = listener, key, met, sealed, store
        threading.Thread(target=self._accept, name="omnimuse-edges", daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._store is not None:
            self._store.close()

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._greet, args=(stream,), name="omnimuse-greet", daemon=True).start()

    def _greet(self, stream: socket.socket) -> None:
        try:
            stream.settimeout(GREETING)
            ours = secrets.token_bytes(SIGNATURE)
            stream.sendall(ours)
            theirs, shown = received(stream, SIGNATURE), received(stream, SIGNATURE)
            name = received(stream, received(stream, 1)[0])
            if not hmac.compare_digest(shown, proof(self._key, b"pool", ours, theirs, name)):
                stream.close()
                return
            stream.sendall(proof(self._key, b"front", ours, theirs, name))
        except (OSError, EOFError):
            stream.close()
            return
        seal = proof(self._key, b"seal", ours, theirs, name) if self._sealed else b""
        self._met(name.decode(), Wire(stream, seal, True, self._store))


def proof(key: bytes, what: bytes, *parts: bytes) -> bytes:
    """What only who knows the key can say of `parts`."""
    return hmac.new(key, b"|".join((what, *parts)), hashlib.sha256).digest()


def joined(stream: socket.socket, key: bytes, name: str, sealed: bool, store: Store | None = None) -> Wire:
    """The end of an edge to the front at the other end of `stream`. EngineDeadError if that does not know the key."""
    said = name.encode()
    try:
        stream.settimeout(GREETING)
        theirs, ours = received(stream, SIGNATURE), secrets.token_bytes(SIGNATURE)
        stream.sendall(ours + proof(key, b"pool", theirs, ours, said) + bytes([len(said)]) + said)
        shown = received(stream, SIGNATURE)
    except (OSError, EOFError) as error:
        stream.close()
        why = str(error) or "it has another key"
        raise EngineDeadError(
            f"the front of the pools did not let this one in ({why}); start the engine again"
        ) from None
    if not hmac.compare_digest(shown, proof(key, b"front", theirs, ours, said)):
        stream.close()
        raise EngineDeadError(
            "what answers does not know the key of the pools, and so is not their front; see what else listens there, "
            "and start the engine again"
        )
    return Wire(stream, proof(key, b"seal", theirs, ours, said) if sealed else b"", False, store)


class SharedMemory:
    """Processes of one machine."""

    def listen(self, folder: Path, key: bytes, met: Met) -> Listening:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("connector shared_memory needs Linux; use connector: tcp")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(folder / "edges"))
        listener.listen()
        return Door(listener, str(folder / "edges"), key, met, sealed=False)

    def connect(self, address: str, key: bytes, name: str) -> Connector:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(GREETING)
        stream.connect(address)
        return joined(stream, key, name, sealed=False)


class Tcp:
    """Processes that share no memory. The front listens at `host`, an address of its machine that all of them reach."""

    def __init__(self, host: str = "") -> None:
        self._host = host or LOOPBACK

    def listen(self, folder: Path, key: bytes, met: Met) -> Listening:
        return self.door(key, met)

    def connect(self, address: str, key: bytes, name: str) -> Connector:
        return self.join(address, key, name)

    def door(self, key: bytes, met: Met, store: Store | None = None) -> Door:
        """Where ends are met, which share `store`; ConfigError where nobody can listen."""
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            listener = socket.create_server((self._host, 0), family=family)
        except OSError as error:
            raise ConfigError(
                f"pools cannot be met at {self._host}: {error}; name an address of this machine"
            ) from None
        host, port = listener.getsockname()[:2]
        return Door(listener, f"{host}:{port}", key, met, True, store)

    def join(self, address: str, key: bytes, name: str, store: Store | None = None) -> Connector:
        """An end of an edge to the front at `address`."""
        host, _, port = address.rpartition(":")
        stream = socket.create_connection((host, int(port)), GREETING)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return joined(stream, key, name, True, store)


OURS = (*NEAR, "tcp", "ray", "mooncake", "yuanrong")


def check_connectors(deploy: DeployConfig) -> None:
    """ConfigError for a pool with a connector that is none, or that is told what it has no option for."""
    for pool in deploy.pools:
        try:
            if pool.connector != "local":
                kind_of(pool.connector, "", deploy.connectors.get(pool.connector, {}))
        except ConfigError as error:
            raise deploy.wrong_of(pool.name, error) from None


def kind_of(name: str, host: str = "", options: Mapping[str, str] = MappingProxyType({})) -> Kind:
    """The connector of that name, to be met at `host` (empty: by this machine only), with the store's `options`.

    ConfigError if there is none.
    """
    if name in OURS[3:]:
        from omnimuse.deploy.stores import stored

        return stored(name, host, options)
    if options:
        raise ConfigError(f"connectors: {name} has no options; leave {', '.join(options)} out")
    if name == "shared_memory":
        return SharedMemory()
    if name == "tcp":
        return Tcp(host)
    found = brought(CONNECTORS, OURS)
    if name not in found:
        raise ConfigError(f"connector {name!r} is not known; use one of {', '.join((*OURS, *found))}")
    kind: Kind = loaded(found[name])()
    return kind
