"""Connectors whose tensors go by way of a store that several machines share: Ray's, Mooncake's and Yuanrong's.

Frames go over a signed socket as with `tcp`; what is large is put into the store under a name that nobody can guess,
taken out by the other end, and removed. The signature is of what was put, so whoever else writes to the store is found
out. Each store is written to what its package publishes, and imported where it is named. No torch.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omnimuse.core.errors import ConfigError
from omnimuse.deploy.connectors import Connector, Listening, Met, Store, StoreError, Tcp

NAMESPACE = "omnimuse"
"""Where names of ours are in Ray."""
PATIENCE = 30.0
"""Seconds in which what was put can be taken out."""


class Stored(Tcp):
    """Edges beside a store, which `opened` makes or joins: it is given the store's options and, to join, its name."""

    def __init__(
        self, host: str, options: Mapping[str, str], opened: Callable[[Mapping[str, str], str], Store]
    ) -> None:
        super().__init__(host)
        self._options, self._opened = options, opened

    def listen(self, folder: Path, key: bytes, met: Met) -> Listening:
        """As `tcp`; the address has the name of the store, too."""
        store = self._opened(self._options, "")
        door = super().door(key, met, store)
        door.address = f"{door.address}#{store.name}"
        return door

    def connect(self, address: str, key: bytes, name: str) -> Connector:
        """As `tcp`, with the store of that name."""
        where, _, store = address.partition("#")
        return super().join(where, key, name, self._opened(self._options, store))


def stored(kind: str, host: str, options: Mapping[str, str]) -> Stored:
    """The connector of a kind in `STORES`; ConfigError for an option that it does not have."""
    store, known = STORES[kind]
    for option in options:
        if option not in known:
            raise ConfigError(f"connectors: {kind}: {option!r} is not honoured; allowed are {', '.join(known)}")
    return Stored(host, options, store)


# -- Ray ---------------------------------------------------------------------------------------------------------------


class Board:
    """An actor that holds references to what was put until it is taken, so that it stays in Ray's store."""

    def __init__(self) -> None:
        self._held: dict[str, list[Any]] = {}

    def put(self, key: str, held: list[Any]) -> None:
        """Hold one."""
        self._held[key] = held

    def take(self, key: str) -> list[Any]:
        """Give one away; empty if there is none."""
        return self._held.pop(key, [])

    def count(self) -> int:
        """How many are held."""
        return len(self._held)


class RayStore:
    """Objects in the store of a cluster of Ray; processes of one node share their memory. Option: its `address`."""

    def __init__(self, options: Mapping[str, str], name: str) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError('connector ray needs ray: pip install "omnimuse[ray]"') from None
        address = options.get("address", "auto")
        try:
            ray.init(
                address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
            )
            self.name = name or f"edges-{secrets.token_hex(8)}"
            board: Any = ray.remote(num_cpus=0)(Board)
            self.board = (
                ray.get_actor(name, NAMESPACE) if name else board.options(name=self.name, namespace=NAMESPACE).remote()
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"connector ray: there is no cluster at {address} ({error}); start one with `ray start --head`"
            ) from None

    def put(self, key: str, data: memoryview) -> None:
        """Put `data` under `key`."""
        import numpy as np
        import ray

        try:
            ray.get(self.board.put.remote(key, [ray.put(np.frombuffer(data, np.uint8))]), timeout=PATIENCE)
        except ray.exceptions.RayError as error:
            raise StoreError(f"Ray's store took nothing: {type(error).__name__}") from None

    def take(self, key: str) -> memoryview:
        """What was put under `key`, which is free then."""
        import ray

        try:
            held = ray.get(self.board.take.remote(key), timeout=PATIENCE)
            if not held:
                raise StoreError("what was put into Ray's store is not there any more")
            found: memoryview = memoryview(ray.get(held[0], timeout=PATIENCE)).cast("B")
        except ray.exceptions.RayError as error:
            raise StoreError(f"Ray's store has lost what was put: {type(error).__name__}") from None
        return found

    def close(self) -> None:
        """Nothing is left to do: the board ends with whoever made it."""


# -- Mooncake ----------------------------------------------------------------------------------------------------------


class Mooncake:
    """Mooncake's distributed store (`mooncake.store.MooncakeDistributedStore`).

    Options are those of its `setup`: `host` (this machine), `metadata_server`, `master`, `segment` and `localbuf` in
    bytes, `protocol` (tcp or rdma) and `rdma` devices.
    """

    name = ""

    def __init__(self, options: Mapping[str, str], name: str) -> None:
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as problem:
            raise ConfigError(
                f'connector mooncake needs Mooncake ({problem}): pip install "omnimuse[mooncake]", which is '
                "mooncake-transfer-engine-non-cuda (with CUDA, mooncake-transfer-engine does as well), and the library "
                "libibverbs of the system"
            ) from None
        self._store = MooncakeDistributedStore()
        status = self._store.setup(
            options.get("host", "127.0.0.1"),
            options.get("metadata_server", "http://127.0.0.1:8080/metadata"),
            int(options.get("segment", 512 * 2**20)),
            int(options.get("localbuf", 128 * 2**20)),
            options.get("protocol", "tcp"),
            options.get("rdma", ""),
            options.get("master", "127.0.0.1:50051"),
        )
        if status:
            raise ConfigError(f"connector mooncake: its store cannot be set up (status {status}); is its master there?")

    def put(self, key: str, data: memoryview) -> None:
        """Put `data` under `key`."""
        if status := self._store.put(key, bytes(data)):
            raise StoreError(f"Mooncake's store took nothing (status {status})")

    def take(self, key: str) -> memoryview:
        """What was put under `key`, which is free then."""
        if not (found := self._store.get(key)):
            raise StoreError("what was put into Mooncake's store is not there")
        self._store.remove(key)
        return memoryview(found)

    def close(self) -> None:
        """Leave the store."""
        self._store.close()


# -- Yuanrong ----------------------------------------------------------------------------------------------------------


class Yuanrong:
    """The data system of openYuanrong (`yr.datasystem.kv_client.KVClient`), whose worker is at `host` and `port`."""

    name = ""

    def __init__(self, options: Mapping[str, str], name: str) -> None:
        try:
            from yr.datasystem.kv_client import KVClient, WriteMode
        except ImportError as problem:
            raise ConfigError(
                f'connector yuanrong needs its client ({problem}): pip install "omnimuse[yuanrong]", which is '
                "openyuanrong-datasystem"
            ) from None
        self._client, self._mode = (
            KVClient(options.get("host", "127.0.0.1"), int(options.get("port", 31501))),
            WriteMode,
        )
        try:
            self._client.init()
        except RuntimeError as error:
            raise ConfigError(f"connector yuanrong: no worker of its data system answers: {error}") from None

    def put(self, key: str, data: memoryview) -> None:
        """Put `data` under `key`."""
        try:
            self._client.set(key, bytes(data), self._mode.NONE_L2_CACHE_EVICT)
        except RuntimeError as error:
            raise StoreError(f"Yuanrong's store took nothing: {error}") from None

    def take(self, key: str) -> memoryview:
        """What was put under `key`, which is free then."""
        try:
            [found] = self._client.get([key], False, int(PATIENCE * 1000))
            if not found:
                raise StoreError("what was put into Yuanrong's store is not there")
            self._client.delete([key])
        except RuntimeError as error:
            raise StoreError(f"Yuanrong's store gave nothing back: {error}") from None
        return memoryview(found)

    def close(self) -> None:
        """Nothing is left to do: a client ends with its process."""


STORES: Mapping[str, tuple[Callable[[Mapping[str, str], str], Store], tuple[str, ...]]] = MappingProxyType(
    {
        "ray": (RayStore, ("address",)),
        "mooncake": (
            Mooncake,
            ("host", "metadata_server", "segment", "localbuf", "protocol", "rdma", "master"),
        ),
        "yuanrong": (Yuanrong, ("host", "port")),
    }
)
"""By the name that a deploy file has for it: the store, and its options."""
