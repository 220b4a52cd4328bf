"""Load on a server: what `omnimuse bench serve` sends, how it measures, and nothing about how it is shown.

Asks any OpenAI-compatible server for pictures, or for what else `bench_asks.py` knows, at given moments (open loop) or
by a given number of clients (closed loop), and notes for each request when it was due, sent, answered and how it ended.
Every request has a connection of its own (`bench_http.py`), whose making is part of its time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from urllib.parse import quote

from omnimuse.cli.bench_asks import TASKS
from omnimuse.cli.bench_http import Answer, Target, exchange
from omnimuse.core.errors import ConfigError, plain

STARTED = frozenset({"worker_lost", "insufficient_memory", "numerical_error", "worker_crash"})
"""Error codes of work that had begun: with status 503, too, they are failures and no refusals."""
NO_CONNECTION = "no_connection"
"""The code of requests that never reached the server."""
LONGEST = 400
"""Characters of a server's message that are kept."""
WAITING = frozenset({"queued", "in_progress"})
"""What a job says of itself while it has not ended."""
POLL, REMOVING = 0.05, 5.0
"""Seconds: after which a job is asked for again, and that its removal may take."""
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "pink")
SHAPES = ("circle", "square", "star", "ring", "triangle")


@dataclass(frozen=True)
class Entry:
    """One kind of picture or video in the mix; without a size, frames or steps the server's own are taken."""

    name: str
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    weight: float = 1.0
    frames: int | None = None

    @property
    def work(self) -> float:
        """Megapixels x frames x steps, by which wasted work is weighed (what is not known counts as 1)."""
        return (self.width or 1000) * (self.height or 1000) / 1e6 * (self.frames or 1) * (self.steps or 1)


@dataclass(frozen=True)
class Load:
    """What to send. `rate` (requests a second, open loop) or `concurrency` (clients, closed loop) is set, and
    `seconds` or `requests` or both end it; `timeout` is how long a client waits, in seconds. With a `deadline` requests
    say after how many their answer is of no use, or the name of a class. With `blocks` they ask what every block and
    step took. `task` is what is asked for (`TASKS`), `tokens` how many of an answer or a sound at most, and `shown`
    what comes with each prompt, by medium.
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
    shown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How one request went. Times are seconds since the load began; `previewed` is when the first look or piece came.

    `status` is 0 if there was no answer; `code` says what was wrong, and is empty for a good one, and `message` is what
    the server said of that. As far as the server tells them, `stages` are the seconds of each, `steps` those of each of
    its steps, `blocks` those of every block of a network; `bytes_` are the bytes that were held when a stage or each
    step of it was done, or the most after a run of a block, by the same names, and `held` the most MiB that the worker
    held at all.
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
    bytes_: Mapping[str, Sequence[float]] = field(default_factory=dict)
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
                elif a.status == 200 and self._task.kept:
                    outcome = await self._job(outcome, json.loads(await a.read()))
                else:
                    outcome = self._whole(outcome, await a.read())
        except TimeoutError:
            outcome = replace(outcome, code="timeout")
        except (OSError, EOFError):
            outcome = replace(outcome, code="broken_connection" if outcome.status else NO_CONNECTION)
        except (ValueError, RecursionError):
            outcome = replace(outcome, code="invalid_answer")
        return outcome if outcome.ended else replace(outcome, ended=self.now())

    def _request(self, entry: Entry, prompt: str) -> tuple[str, str, bytes, dict[str, str]]:
        fields = self._task.fields(prompt) | self._task.showing(self._load.shown, prompt)
        if self._load.model:
            fields["model"] = self._load.model
        if entry.width is not None:
            fields["size"] = f"{entry.width}x{entry.height}"
        if entry.frames is not None:
            fields["num_frames"] = entry.frames
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
            body = event.get(self._task.kept) or event
            if self._task.begun(event) and outcome.previewed is None:
                outcome = replace(outcome, previewed=self.now())
            elif self._task.ended(event):
                outcome, code = _told(replace(outcome, ended=self.now()), body), "" if there else "invalid_answer"
            elif isinstance(body, dict) and body.get("error"):
                code, message = _complaint(body, "stream_error")
                return replace(outcome, ended=self.now(), code=code, message=message)
        return replace(outcome, ended=self.now(), code=code)

    async def _job(self, outcome: Outcome, job: object) -> Outcome:
        """The outcome of a job that was accepted: good once its file has come. It is removed, whatever became of it."""
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            return replace(outcome, code="invalid_answer")
        path = f"{self._task.path}/{quote(job['id'], safe='')}"
        try:
            outcome = await (self._watched if self._load.stream else self._polled)(outcome, path)
            if outcome.code:
                return outcome
            async with self._get(f"{path}/content") as answer:
                content = await answer.read()
            code, message = self._judge(answer.status, content, file=True)
            return replace(outcome, status=answer.status, ended=self.now(), code=code, message=message)
        finally:
            with suppress(OSError, EOFError, ValueError, TimeoutError):
                async with asyncio.timeout(REMOVING), exchange(self._target, "DELETE", path, b"", {}) as answer:
                    await answer.read()

    async def _polled(self, outcome: Outcome, path: str) -> Outcome:
        """The outcome of a job at `path` once it tells that it has ended."""
        while True:
            async with self._get(path) as answer:
                content = await answer.read()
            outcome = replace(outcome, status=answer.status)
            told = json.loads(content) if answer.status == 200 else {}
            if not isinstance(told, dict) or told.get("error") or told.get("status") not in WAITING:
                return self._whole(outcome, content)
            await asyncio.sleep(POLL)

    async def _watched(self, outcome: Outcome, path: str) -> Outcome:
        """The same, by the events that it tells."""
        async with self._get(f"{path}/events") as answer:
            outcome = replace(outcome, status=answer.status)
            if answer.status == 200:
                return await self._follow(outcome, answer)
            return self._whole(outcome, await answer.read())

    def _get(self, path: str) -> AbstractAsyncContextManager[Answer]:
        return exchange(self._target, "GET", path, b"", {})

    def _whole(self, outcome: Outcome, content: bytes) -> Outcome:
        """The outcome of an answer that is not a stream."""
        code, message = self._judge(outcome.status, content, file=self._task.file)
        outcome = replace(outcome, ended=self.now(), code=code, message=message)
        return outcome if code or self._task.file else _told(outcome, json.loads(content))

    def _judge(self, status: int, content: bytes, *, file: bool) -> tuple[str, str]:
        """What is wrong with an answer, in a code and the server's words; empty if it is what was asked for."""
        if status != 200:
            try:
                return _complaint(json.loads(content), f"http_{status}")
            except (ValueError, RecursionError):
                return f"http_{status}", ""
        if file:
            return "" if content else "invalid_answer", ""
        body = json.loads(content)
        if self._task.kept and isinstance(body, dict) and body.get("error"):
            return _complaint(body, "invalid_answer")
        return self._task.judge(body), ""


def _told(outcome: Outcome, told: object) -> Outcome:
    """`outcome` with what a good answer says of where its time and memory went."""
    body = told if isinstance(told, dict) else {}
    stages = {name.removesuffix("_s"): took for name, took in _numbers(body.get("timings")).items()}
    held = body.get("peak_memory_mb")
    held = held if isinstance(held, int | float) else None
    steps, blocks = _lists(body.get("steps")), _numbers(body.get("block_timings"))
    bytes_ = _lists(body.get("bytes")) | {name: [most] for name, most in _numbers(body.get("block_bytes")).items()}
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
