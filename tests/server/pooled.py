"""Servers of tiny models as the official client meets them, and models whose stages are spread over real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from tests.server.whole_server import WholeServer

ALLROUND = (
    {"name": "read", "stages": ["look", "compose", "read"]},
    {"name": "write", "stages": ["write", "read thoughts"]},
    {"name": "draw", "stages": "*", "connector": "tcp"},
)
"""What draws and writes with one network: every pool has that, and what was read goes from one to the next."""
ALOUD = (
    {"name": "think", "tracks": [0]},
    {"name": "talk", "tracks": [1], "connector": "tcp"},
    {"name": "sound", "stages": "*", "connector": "local"},
)
"""What answers aloud."""
SPOKEN = ({"name": "talk", "tracks": [0]}, {"name": "sound", "tracks": [1], "connector": "tcp"})
"""What speaks."""
TALKING = ({"name": "write", "stages": ["read", "generate"]}, {"name": "draw", "stages": "*", "connector": "tcp"})
"""What talks and draws."""


def placed(folder: Path, *pools: dict[str, Any]) -> tuple[str, ...]:
    """The options of a server whose model is in these pools; they are written to a file in `folder`."""
    if not pools:
        return ()
    file = folder / "pools.yaml"
    file.write_text(json.dumps({"pools": pools}))  # JSON is YAML
    return ("--deploy", str(file))


@contextmanager
def asked_by_client(home: Path, model: Path, *pools: dict[str, Any]) -> Iterator[openai.OpenAI]:
    """The official client of a server of `model`, in float32 on the CPU, in one process or in these pools."""
    with WholeServer(home, str(model), "--dtype", "float32", "--device", "cpu", *placed(home, *pools)) as server:
        server.wait_ready()
        with client_of(server) as client:
            yield client


def client_of(server: WholeServer, timeout: float = 60) -> openai.OpenAI:
    """The official client, which tries nothing twice; `timeout` in seconds."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=timeout)
