"""Stand-ins for the packages of two stores: the part of their published API that we call, over a dict of this process.

They show that we call it as it is published, and nothing of the stores themselves.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

HELD: dict[str, bytes] = {}
"""What lies in the store."""


class MooncakeDistributedStore:
    """`mooncake.store`: a status other than 0 is a failure, and what is not there is empty."""

    def setup(self, host: str, metadata: str, segment: int, buffer: int, protocol: str, rdma: str, master: str) -> int:
        return 0 if master == "127.0.0.1:50051" and protocol == "tcp" and segment > 0 and buffer > 0 else -1

    def put(self, key: str, value: bytes) -> int:
        HELD[key] = value
        return 0

    def get(self, key: str) -> bytes:
        return HELD.get(key, b"")

    def remove(self, key: str) -> int:
        return 0 if HELD.pop(key, None) is not None else -704

    def close(self) -> int:
        return 0


class WriteMode:
    """How `KVClient.set` writes."""

    NONE_L2_CACHE_EVICT = 3


class KVClient:
    """`yr.datasystem.kv_client`: a failure is a RuntimeError."""

    def __init__(self, host: str, port: int) -> None:
        self._reached = (host, port) == ("127.0.0.1", 31501)

    def init(self) -> None:
        if not self._reached:
            raise RuntimeError("code: [RPC unavailable]")

    def set(self, key: str, value: bytes, write_mode: int) -> None:
        assert write_mode == WriteMode.NONE_L2_CACHE_EVICT
        HELD[key] = value

    def get(self, keys: list[str], convert_to_str: bool, sub_timeout_ms: int) -> list[bytes | None]:
        assert not convert_to_str
        return [HELD.get(key) for key in keys]

    def delete(self, keys: list[str]) -> list[str]:
        return [key for key in keys if HELD.pop(key, None) is None]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both packages be there."""
    HELD.clear()
    _module(monkeypatch, "mooncake.store", MooncakeDistributedStore=MooncakeDistributedStore)
    _module(monkeypatch, "yr.datasystem.kv_client", KVClient=KVClient, WriteMode=WriteMode)


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **held: Any) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for each, value in held.items():
        setattr(module, each, value)
