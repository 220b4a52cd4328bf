"""`omnimuse serve` as an operator starts it: a process of its own, on a port of its own, with the demo model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from PIL import Image

from tests.processes import children

START = 110.0  # seconds; a busy machine takes long to import torch


@dataclass(frozen=True)
class Answer:
    """A response: its status, its headers, its JSON (None for anything else), its bytes."""

    status: int
    headers: Mapping[str, str]
    json: Any
    content: bytes = b""


class WholeServer:
    """A running server; as a context it is ended, whatever happened."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        faults: str = "",
        environment: Mapping[str, str] = MappingProxyType({}),
        port: int | None = 0,
        data: str = "data",
        source: Path | None = None,
    ) -> None:
        """With the name of a folder in `folder` for its data; of the code in `source`, else of this one."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._log = (folder / "log").open("a+")
        self._start = self._log.tell()
        place = [*([] if port is None else ["--port", str(port)]), *(["--data", str(folder / data)] if data else [])]
        command = [sys.executable, "-m", "omnimuse", "serve", *place, *options]
        self.process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMNIMUSE_FAULT": faults, **environment},
            cwd=source,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    @property
    def text(self) -> str:
        """What this server has printed."""
        return (self.folder / "log").read_text()[self._start :]

    @property
    def url(self) -> str:
        """Where this machine reaches it; it says so at once."""
        return self.wait_for(r"http://(127\.0\.0\.1|0\.0\.0\.0):\d+").replace("0.0.0.0", "127.0.0.1")

    def wait_for(self, pattern: str) -> str:
        """What the first match of `pattern` in its output is."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            if found := re.search(pattern, self.text):
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no {pattern!r} in what the server said:\n{self.text}")

    def wait_ready(self) -> None:
        """Return when it can draw."""
        self.wait_for("ready in")

    def ask(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = START
    ) -> Answer:
        """GET, or with a `body` POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                content, status, found = response.read(), response.status, response.headers
        except urllib.error.HTTPError as error:
            with error:
                content, status, found = error.read(), error.code, error.headers
        is_json = found.get_content_type() == "application/json"
        return Answer(status, dict(found), json.loads(content) if is_json else None, content)

    def draw(self, **fields: Any) -> Answer:
        """One picture."""
        return self.ask("/v1/images/generations", {"prompt": "a red circle", **fields})

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit status."""
        self.process.send_signal(how)
        return self.process.wait(START)

    def workers(self) -> list[int]:
        """The process ids of its children."""
        return children(self.process.pid)


def pixels(answer: Answer) -> bytes:
    """Of the first picture in an answer."""
    assert answer.status == 200, answer.json
    with Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"]))) as picture:
        return picture.tobytes()
