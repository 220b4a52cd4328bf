"""Load on a server: what `omnimuse bench serve` sends, how it measures, and nothing about how it is shown.

A small HTTP/1.1 client on asyncio streams asks any OpenAI-compatible server for pictures, or for what else
`bench_asks.py` knows, at given moments (open loop) or by a given number of clients (closed loop), and notes for each
request when it was due, sent, answered and how it ended. Every request has a connection of its own, whose making is
part of its time. No library beyond Python's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from urllib.parse import urlsplit

from omnimuse.cli.bench_asks import TASKS
from omnimuse.core.errors import ConfigError, RequestError, plain

STARTED = frozenset({"worker_lost", "insufficient_memory", "numerical_error", "worker_crash"})
"""Error codes of work that had begun: with status 503, too, they are failures and no refusals."""
NO_CONNECTION = "no_connection"
"""The code of requests that never reached the server."""
LONGEST = 400
"""Characters of a server's message that are kept."""
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "pink")
SHAPES = ("circle", "square", "star", "ring", "triangle")


@dataclass(frozen=True)
class Entry:
    """One kind of picture in the mix; without a size or steps the server's own are taken."""

    name: str
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    weight: float = 1.0

    @property
    def work(self) -> float:
        """Megapixels x steps, by which wasted work is weighed (what is not known counts as 1)."""
        return (self.width or 1000) * (self.height or 1000) / 1e6 * (self.steps or 1)


@dataclass(frozen=True)
class Target:
    """Where the server is; `prefix` is the path up to and including /v1."""

    host: str
    port: int
    prefix: str = "/v1"
    secure: bool = False
    key: str = ""

    @staticmethod
    def read(url: str, key: str) -> Target:
        """The server at `url`, with or without the /v1; RequestError if that is no http or https address."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in ("http", "https"):
            raise RequestError(f"--url {url} is not an address; write it like http://127.0.0.1:8000", "url")
        secure = parts.scheme == "https"
        path = parts.path.rstrip("/")
        return Target(
            host, port or (443 if secure else 80), path if path.endswith("/v1") else f"{path}/v1", secure, key
        )

    @property
    def authority(self) -> str:
        """Host and port, as in an address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"


@dataclass(frozen=True)
class Load:
    """What to send. `rate` (requests a second, open loop) or `concurrency` (clients, closed loop) is set, and
    `seconds` or `requests` or both end it; `timeout` is how long a client waits, in seconds. With a `deadline` requests
    say after how many their answer is of no use, or the name of a class. With `blocks` they ask what every block and
    step took. `task` is what is asked for (`TASKS`), `tokens` how many of an answer or a sound at most.
    """

    mix: tuple[Entry, ...]
    rate: float | None = None
    concurrency: int = 1
    seconds: float | None = None
    requests: int | None = None
    stream: bool = False
    timeout: float = 600.0
    seed: int = 0
    model: str = ""
    deadline: float | str | None = None
    blocks: bool = False
    task: str = "pictures"
    tokens: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How one request went. Times are seconds since the load began; `previewed` is when the first look or piece came.

    `status` is 0 if there was no answer; `code` says what was wrong, and is empty for a good one, and `message` is what
    the server said of that. As far as the server tells them, `stages` are the seconds of each, `steps` those of each of
    its steps, `blocks` those of every block of a network; `bytes_` are the most bytes that were held when a stage, a
    step of it or a run of a block was done, by the same names, and `held` the most MiB that the worker held at all.
    """

    entry: Entry
    due: float
    sent: float
    ended: float
    previewed: float | None = None
    status: int = 0
    code: str = ""
    message: str = ""
    retry_after: float = 1.0
    stages: Mapping[str, float] = field(default_factory=dict)
    steps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    blocks: Mapping[str, float] = field(default_factory=dict)
    bytes_: Mapping[str, float] = field(default_factory=dict)
    held: float | None = None

    @property
    def kind(self) -> str:
        """`ok`, `rejected` (429 or 503 before any work) or `failed`."""
        if not self.code:
            return "ok"
        return "rejected" if self.status in (429, 503) and self.code not in STARTED else "failed"

    @property
    def begun(self) -> bool:
        """Whether the server may have begun to work on it: neither refused, nor told what is wrong with it (4xx)."""
        return self.kind != "rejected" and not 400 <= self.status < 500 and self.code != NO_CONNECTION

    @property
    def latency(self) -> float:
        """Seconds from when the request was due until the last byte of its answer."""
        return self.ended - self.due


Watch = Callable[[Outcome], None]


# -- the load ------------------------------------------------------------------------------------------------------


async def run_load(target: Target, load: Load, watch: Watch) -> None:
    """Send `load` and wait for every answer; `watch` is called with each outcome."""
    client = Client(target, load)
    await (_closed_loop if load.rate is None else _open_loop)(client, load, watch)


async def _open_loop(client: Client, load: Load, watch: Watch) -> None:
    """Requests come when they come, however slow the server is: exponential gaps, drawn from the seed."""
    assert load.rate is not None
    gaps, entries, due = random.Random(load.seed), choices(load), 0.0

    async def one(entry: Entry, prompt: str, due: float) -> None:
        watch(await client.ask(entry, prompt, due))

    async with asyncio.TaskGroup() as sending:
        for number in count(1):
            due += gaps.expovariate(load.rate)
            if (load.seconds is not None and due > load.seconds) or number > (load.requests or number):
                break
            await asyncio.sleep(max(0.0, due - client.now()))
            sending.create_task(one(*next(entries), due))


async def _closed_loop(client: Client, load: Load, watch: Watch) -> None:
    """Each client asks again when it has its picture; one that got none first waits as it was told."""
    end, entries = load.seconds, choices(load)
    numbers = iter(range(load.requests)) if load.requests else count()

    async def one() -> None:
        for _ in numbers:
            due = client.now()
            if end is not None and due >= end:
                return
            entry, prompt = next(entries)
            outcome = await client.ask(entry, prompt, due)
            watch(outcome)
            if outcome.code:
                pause = outcome.retry_after
                await asyncio.sleep(pause if end is None else max(0.0, min(pause, end - client.now())))

    async with asyncio.TaskGroup() as clients:
        for _ in range(load.concurrency):
            clients.create_task(one())


def choices(load: Load) -> Iterator[tuple[Entry, str]]:
    """Kinds of pictures by weight with a prompt each, without end; the same for the same seed.

    Prompts differ so that a server cannot answer from memory.
    """
    draw = random.Random(f"mix {load.seed}")
    weights = [entry.weight for entry in load.mix]
    while True:
        entry = draw.choices(load.mix, weights)[0]
        ground, colour = draw.sample(COLOURS, 2)
        yield entry, f"a {colour} {draw.choice(SHAPES)} on a {ground} background"


# -- one request ---------------------------------------------------------------------------------------------------


class Client:
    """Asks for one thing at a time, from a clock that starts at 0 when it is made."""

    def __init__(self, target: Target, load: Load) -> None:
        self._target, self._load, self._task = target, load, TASKS[load.task]
        self._began = time.perf_counter()

    def now(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._began

    async def ask(self, entry: Entry, prompt: str, due: float) -> Outcome:
        """The outcome of one request; no error is raised, whatever the server does."""
        outcome = Outcome(entry, due, self.now(), 0.0)
        try:
            async with asyncio.timeout(self._load.timeout), exchange(self._target, *self._request(entry, prompt)) as a:
                outcome = replace(outcome, status=a.status, retry_after=a.retry_after)
                if a.status == 200 and a.headers.get("content-type", "").startswith("text/event-stream"):
                    outcome = await self._follow(outcome, a)
                else:
                    content = await a.read()
                    code, message = self._judge(a.status, content)
                    outcome = replace(outcome, ended=self.now(), code=code, message=message)
                    outcome = outcome if code or self._task.file else _told(outcome, content)
        except TimeoutError:
            outcome = replace(outcome, code="timeout")
        except (OSError, EOFError):
            outcome = replace(outcome, code="broken_connection" if outcome.status else NO_CONNECTION)
        except (ValueError, RecursionError):
            outcome = replace(outcome, code="invalid_answer")
        return outcome if outcome.ended else replace(outcome, ended=self.now())

    def _request(self, entry: Entry, prompt: str) -> tuple[str, str, bytes, dict[str, str]]:
        fields = self._task.fields(prompt)
        if self._load.model:
            fields["model"] = self._load.model
        if entry.width is not None:
            fields["size"] = f"{entry.width}x{entry.height}"
        if entry.steps is not None:
            fields["num_inference_steps"] = entry.steps
        if self._load.deadline is not None:
            fields["deadline"] = self._load.deadline
        if self._load.blocks:
            fields["block_timings"] = True
        if self._load.tokens is not None:
            fields["max_tokens"] = self._load.tokens
        if self._load.stream:
            fields |= self._task.streamed
        headers = {"content-type": "application/json", "x-stainless-read-timeout": f"{self._load.timeout:g}"}
        return "POST", self._task.path, json.dumps(fields).encode(), headers

    async def _follow(self, outcome: Outcome, answer: Answer) -> Outcome:
        """The outcome of an answer that streams: good once its end has come, something of what was asked for with it or
        before, and no error.
        """
        code, there = "invalid_answer", False
        async for data in answer.events():
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if not isinstance(event, dict):
                continue
            there = there or self._task.has(event)
            if self._task.begun(event) and outcome.previewed is None:
                outcome = replace(outcome, previewed=self.now())
            elif self._task.ended(event):
                outcome, code = _told(replace(outcome, ended=self.now()), data), "" if there else "invalid_answer"
            elif event.get("error"):
                code, message = _complaint(event, "stream_error")
                return replace(outcome, ended=self.now(), code=code, message=message)
        return replace(outcome, ended=self.now(), code=code)

    def _judge(self, status: int, content: bytes) -> tuple[str, str]:
        """What is wrong with an answer, in a code and the server's words; empty if it is what was asked for."""
        if status != 200:
            try:
                return _complaint(json.loads(content), f"http_{status}")
            except (ValueError, RecursionError):
                return f"http_{status}", ""
        if self._task.file:
            return "" if content else "invalid_answer", ""
        return self._task.judge(json.loads(content)), ""


def _told(outcome: Outcome, content: bytes) -> Outcome:
    """`outcome` with what a good answer says of where its time and memory went."""
    body = json.loads(content)
    stages = {name.removesuffix("_s"): took for name, took in _numbers(body.get("timings")).items()}
    held = body.get("peak_memory_mb")
    held = held if isinstance(held, int | float) else None
    steps, blocks = _lists(body.get("steps")), _numbers(body.get("block_timings"))
    bytes_ = {stage: max(each) for stage, each in _lists(body.get("bytes")).items()}
    bytes_ |= _numbers(body.get("block_bytes"))
    return replace(outcome, stages=stages, steps=steps, blocks=blocks, bytes_=bytes_, held=held)


def _numbers(told: object) -> dict[str, float]:
    found = told.items() if isinstance(told, dict) else ()
    return {str(name): float(number) for name, number in found if isinstance(number, int | float)}


def _lists(told: object) -> dict[str, list[float]]:
    found = told.items() if isinstance(told, dict) else ()
    lists = {str(name): each for name, each in found if isinstance(each, list)}
    numbers = {name: [float(one) for one in each if isinstance(one, int | float)] for name, each in lists.items()}
    return {name: each for name, each in numbers.items() if each}


def _complaint(body: object, otherwise: str) -> tuple[str, str]:
    """The code and the message of an error, as OpenAI's interface tells it, or `detail`, as FastAPI does."""
    said = body if isinstance(body, dict) else {}
    error = said.get("error")
    told = error if isinstance(error, dict) else {"message": error or said.get("detail")}
    message = told.get("message")
    words = plain(" ".join(message.split())) if isinstance(message, str) else ""
    return plain(str(told.get("code") or otherwise)), words[:LONGEST]


async def find_model(target: Target, timeout: float = 10.0) -> str:
    """The first model the server lists, or "" if it lists none; ConfigError if there is no server, or no entry."""
    try:
        async with asyncio.timeout(timeout), exchange(target, "GET", "/models", b"", {}) as answer:
            content = await answer.read()
    except (OSError, EOFError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error) or type(error).__name__
        raise ConfigError(f"no server answers at {target} ({reason}); start one with `omnimuse serve`") from None
    if answer.status in (401, 403):
        raise ConfigError(f"the server at {target} refuses this key (status {answer.status}); give --api-key")
    try:
        listed = json.loads(content)["data"]
        return str(listed[0]["id"]) if answer.status == 200 else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


# -- HTTP ----------------------------------------------------------------------------------------------------------


class Answer:
    """An answer whose head has come; its body is read once, by `read` or `events`."""

    def __init__(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        self.status, self.headers, self._reader = status, headers, reader

    @property
    def retry_after(self) -> float:
        """Seconds after which to try again, 1 where nothing is said."""
        with suppress(ValueError):
            return min(120.0, max(0.0, float(self.headers.get("retry-after", 1.0))))
        return 1.0

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([part async for part in self._parts()])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event; comments and names are left out."""
        data: list[bytes] = []
        async for line in self._lines():
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []

    async def _lines(self) -> AsyncIterator[bytes]:
        rest = bytearray()
        async for part in self._parts():
            looked = len(rest)
            rest += part
            while (end := rest.find(b"\n", looked)) >= 0:
                yield bytes(rest[:end]).rstrip(b"\r")
                del rest[: end + 1]
                looked = 0

    async def _parts(self) -> AsyncIterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._line()).split(b";")[0], 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            return
        said = self.headers.get("content-length")
        left = None if said is None else int(said)
        while left is None or left > 0:
            part = await self._reader.read(2**16 if left is None else min(left, 2**16))
            if not part and left is not None:
                raise EOFError(f"the answer broke off {left} bytes before its end")
            if not part:
                return
            left = None if left is None else left - len(part)
            yield part

    async def _line(self) -> bytes:
        line = await self._reader.readline()
        if not line:
            raise EOFError("the answer broke off between two chunks")
        return line


@asynccontextmanager
async def exchange(
    target: Target, method: str, path: str, body: bytes, headers: dict[str, str]
) -> AsyncIterator[Answer]:
    """Send a request over a connection of its own and give its answer, whose body is still to be read.

    OSError, EOFError or ValueError if there is no answer, or none in HTTP.
    """
    context = ssl.create_default_context() if target.secure else None
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    try:
        head = {"host": target.authority, "connection": "close", "content-length": str(len(body))}
        if target.key:
            head["authorization"] = f"Bearer {target.key}"
        lines = [f"{method} {target.prefix}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in (head | headers).items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        yield await _read_head(reader)
    finally:
        writer.transport.abort()  # the answer has been read, or is not wanted; there is nothing left to say
        with suppress(OSError):
            await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    status = 100
    while 100 <= status < 200:  # interim answers say nothing yet
        words = (await reader.readline()).split(maxsplit=2)
        if not words:
            raise EOFError("the server closed the connection without an answer")
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            raise ValueError("the answer is not HTTP")
        status = int(words[1])
        headers = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
    return Answer(status, headers, reader)
