"""Streams of events, and work that stops when its client goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request
from starlette.types import Message

from omnimuse.core.errors import WorkerLostError
from omnimuse.server.http.sse import Event, EventStream
from omnimuse.server.http.watch import ClientGone, cancel_on_disconnect
from tests.server.asgi import Client, scope


async def events(*given: Event | Exception | float, closed: list[str]) -> AsyncIterator[Event]:
    """Events, pauses in seconds, and errors; notes how it ended."""
    try:
        for one in given:
            if isinstance(one, Exception):
                raise one
            if isinstance(one, float):
                await asyncio.sleep(one)
            else:
                yield one
        closed.append("finished")
    except asyncio.CancelledError:
        closed.append("cancelled")
        raise
    finally:
        closed.append("closed")


def stream(*given: Event | Exception | float, done: bool = False, quiet: float = 15.0) -> tuple[Client, list[str]]:
    client, closed = Client(), []
    response = EventStream(events(*given, closed=closed), done=done, quiet=quiet, headers={"x-seed": "7"})
    asyncio.run(response(scope(), client.receive, client.send))
    return client, closed


def test_events_are_named_json_lines_and_the_stream_ends_as_openai_ends_it() -> None:
    client, closed = stream((None, {"a": "x\ny é"}), ("made.it", [1]), done=True)
    assert client.answer.content == (
        b'data: {"a":"x\\ny \\u00e9"}\n\n'
        b"event: made.it\ndata: [1]\n\n"
        b"data: [DONE]\n\n"
    )  # fmt: skip
    assert client.answer.whole and closed == ["finished", "closed"]


def test_the_headers_keep_proxies_from_holding_events_back() -> None:
    headers = stream()[0].answer.headers
    assert headers["content-type"].startswith("text/event-stream") and "content-length" not in headers
    assert headers["cache-control"] == "no-store" and headers["x-accel-buffering"] == "no" and headers["x-seed"] == "7"


def test_a_stream_that_was_not_asked_to_has_no_end_mark() -> None:
    assert stream((None, 1))[0].answer.content == b"data: 1\n\n"


def test_silence_is_filled_with_comments() -> None:
    client, _ = stream((None, 1), 0.5, (None, 2), quiet=0.1)
    first, *comments, last = client.answer.content.split(b"\n\n")[:-1]
    assert (first, last) == (b"data: 1", b"data: 2")
    assert 2 <= len(comments) <= 5 and set(comments) == {b": keep-alive"}


@pytest.mark.parametrize("done", [True, False])
def test_an_error_is_the_last_event_with_our_code(done: bool) -> None:
    client, closed = stream((None, 1), WorkerLostError("the worker died"), (None, 2), done=done)
    _, last, rest = client.answer.content.split(b"\n\n")
    name, data = last.split(b"\n")
    error = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: error" and rest == b"" and client.answer.whole
    assert error["type"] == "error" and error["error"]["code"] == "worker_lost"
    assert closed == ["closed"]


def test_the_source_is_closed_as_soon_as_the_client_goes() -> None:
    closed: list[str] = []

    async def main() -> None:
        client = Client()
        response = EventStream(events((None, 1), 60.0, closed=closed))
        serving = asyncio.create_task(response(scope(), client.receive, client.send))
        while not client.answer.content:
            await asyncio.sleep(0.01)
        client.leave.set()
        await asyncio.wait_for(serving, 60)
        assert not client.answer.whole

    asyncio.run(main())
    assert closed == ["cancelled", "closed"]


def test_the_source_is_closed_when_the_client_goes_while_it_does_not_read() -> None:
    closed: list[str] = []

    async def main() -> None:
        client = Client()

        async def send(message: Message) -> None:
            await asyncio.sleep(60 if message["type"] == "http.response.body" else 0)

        response = EventStream(events((None, 1), 60.0, closed=closed))
        serving = asyncio.create_task(response(scope(), client.receive, send))
        await asyncio.sleep(0.05)
        client.leave.set()
        await asyncio.wait_for(serving, 60)

    asyncio.run(main())
    assert closed == ["closed"]  # it was not asked for more


def test_a_slow_reader_holds_the_source_back() -> None:
    made = 0

    async def many() -> AsyncIterator[Event]:
        nonlocal made
        for made in range(1, 1000):
            yield None, made

    async def main() -> None:
        client = Client()

        async def send(message: object) -> None:
            await asyncio.sleep(0.02)

        serving = asyncio.create_task(EventStream(many())(scope(), client.receive, send))
        await asyncio.sleep(0.3)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(main())
    assert 1 <= made <= 17


# -- one answer ----------------------------------------------------------------------------------------------


async def work(log: list[str], seconds: float, error: Exception | None = None) -> str:
    try:
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return "done"
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)  # cleaning up takes its time
        log.append("cancelled")
        raise


def post(client: Client) -> Request:
    return Request(scope("POST"), client.receive)


def test_work_that_ends_first_gives_its_result_or_its_error() -> None:
    async def main() -> None:
        assert await cancel_on_disconnect(post(Client()), work([], 0.01)) == "done"
        with pytest.raises(KeyError):
            await cancel_on_disconnect(post(Client()), work([], 0.01, KeyError("x")))

    asyncio.run(main())


def test_work_has_stopped_when_the_client_has_gone() -> None:
    log: list[str] = []

    async def main() -> None:
        client = Client()
        asyncio.get_running_loop().call_later(0.05, client.leave.set)
        with pytest.raises(ClientGone):
            await cancel_on_disconnect(post(client), work(log, 60))
        assert log == ["cancelled"]

    asyncio.run(main())


def test_cancelling_who_waits_cancels_the_work() -> None:
    log: list[str] = []

    async def main() -> None:
        waiting = asyncio.create_task(cancel_on_disconnect(post(Client()), work(log, 60)))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert log == ["cancelled"]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
