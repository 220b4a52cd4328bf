"""A seeded run of good requests, bad requests, vanishing clients and deaths against the whole server.

What it did follows from the seed; what must hold afterwards is in `Report`: every accepted job has ended, the same
seed drew the same picture every time, nothing was left behind, and no answer was a fault of the server's own.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import sys
import tempfile
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.processes import kill, wait_gone
from tests.server.whole_server import Answer, WholeServer

SETTLE = 120.0  # seconds in which what was accepted has ended
BAD = (
    {"prompt": "a star", "size": "100x100"},
    {"prompt": "a star", "num_inference_steps": -1},
    {"prompt": 7},
    {"promt": "a star"},
    {"prompt": "a star", "model": "somebody/else"},
)


@dataclass
class Report:
    """Empty lists are good news. `faults` are answers that blame the server itself."""

    accepted: int = 0
    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)


class Chaos:
    """One run in `folder`; `run`, then `settle`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._server = self._start()
        self._jobs: dict[str, int] = {}
        self._pictures: dict[int, str] = {}
        self._workers: set[int] = set()
        self.report = Report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.__exit__(kind, error, trace)

    def run(self, seconds: float) -> None:
        """Round after round, until the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.round()

    def round(self) -> None:
        """Every deed as often as its number says, one after the other, in an order of chance."""
        self._server.wait_ready()
        deeds = {
            self._submit: 8,
            self._draw: 6,
            self._ask_nonsense: 6,
            self._vanish: 4,
            self._kill_worker: 2,
            self._kill_server: 1,
            self._restart: 1,
        }
        order = [deed for deed, count in deeds.items() for _ in range(count)]
        self._random.shuffle(order)
        for deed in order:
            self.report.done[deed.__name__] = self.report.done.get(deed.__name__, 0) + 1
            try:
                deed()
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                self.report.faults.append(f"{deed.__name__}: {error}")

    def settle(self) -> Report:
        """Wait for what was accepted, end the server, and say what is wrong."""
        self._server.wait_ready()
        end, open_jobs = time.monotonic() + SETTLE, dict(self._jobs)
        while open_jobs and time.monotonic() < end:
            for job, seed in list(open_jobs.items()):
                if self._has_ended(job, seed):
                    del open_jobs[job]
            time.sleep(0.1)
        self.report.unfinished = list(open_jobs)
        self._note_workers()
        self._server.end()
        if not wait_gone(sorted(self._workers)):
            self.report.left_behind.append("a worker")
        self.report.left_behind += [path.name for path in (self._folder / "data" / "spool").iterdir()]
        return self.report

    def _has_ended(self, job: str, seed: int) -> bool:
        answer = self._server.ask(f"/v1/images/{job}")
        if answer.status == 404:
            self.report.lost.append(job)
            return True
        if answer.json["status"] == "completed":
            self._compare(seed, answer.json["result"]["data"][0])
        return answer.json["status"] in ("completed", "failed")

    def _submit(self) -> None:
        seed = self._random.randrange(6)
        answer = self._server.draw(seed=seed, background=True, num_inference_steps=10)
        self._judge(answer)
        if answer.status == 200:
            self._jobs[answer.json["id"]] = seed
            self.report.accepted += 1

    def _draw(self) -> None:
        seed = self._random.randrange(6)
        answer = self._server.draw(seed=seed, num_inference_steps=10)
        self._judge(answer)
        if answer.status == 200:
            self._compare(seed, answer.json["data"][0])

    def _ask_nonsense(self) -> None:
        answer = self._server.ask("/v1/images/generations", self._random.choice(BAD))
        if answer.status not in (400, 404):
            self.report.faults.append(f"nonsense was answered {answer.status}")

    def _vanish(self) -> None:
        """A client that goes away in the middle of its request, or of its answer."""
        where = urlsplit(self._server.url)
        body = b'{"prompt": "a star", "num_inference_steps": 200}'
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection((str(where.hostname), int(where.port or 0)), 10) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: self._random.choice((9, 99))])
            time.sleep(self._random.random() * 0.3)

    def _kill_worker(self) -> None:
        self._note_workers()
        if workers := self._server.workers():
            kill(self._random.choice(workers))

    def _kill_server(self) -> None:
        self._note_workers()
        self._server.end(signal.SIGKILL)
        self._start_again()

    def _restart(self) -> None:
        self._note_workers()
        self._server.end(signal.SIGTERM)
        self._start_again()

    def _start(self) -> WholeServer:
        """On a CPU the default tier is "invariant", with one number of threads: files of one seed must be equal."""
        return WholeServer(self._folder, "--device", "cpu", "--threads", "2")

    def _start_again(self) -> None:
        self._server.__exit__(None, None, None)
        self._server = self._start()
        self._server.wait_ready()

    def _note_workers(self) -> None:
        self._workers |= set(self._server.workers())

    def _judge(self, answer: Answer) -> None:
        """A refusal with a reason is fine; what blames the server itself is not, unless we killed its worker."""
        if answer.status >= 500 and answer.json["error"]["code"] not in ("worker_crash", "worker_lost"):
            self.report.faults.append(str(answer.json["error"]))

    def _compare(self, seed: int, picture: dict[str, str]) -> None:
        """The same seed gives the same file, settings included."""
        if self._pictures.setdefault(seed, picture["b64_json"]) != picture["b64_json"]:
            self.report.different.append(seed)


def main() -> int:
    """Run for a time and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Chaos(Path(folder), args.seed) as chaos:
            chaos.run(args.seconds)
            report = chaos.settle()
    print(report)
    return int(bool(report.lost or report.unfinished or report.different or report.faults or report.left_behind))


if __name__ == "__main__":
    sys.exit(main())
