"""WebSockets below any protocol: clients that do not read, say nothing, say too much, or come when nobody should."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest
from starlette.websockets import WebSocket

from omnimuse.server.errors import ApiError, body
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection, Crowd
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.live import Event, Live, live_routes
from tests.server.uvicorn_thread import served

pytest.importorskip("websockets", reason="a server without it has no WebSockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.websocket import Events, opened
from tests.waiting import wait_until

PATH = "/v1/echo"


def told_of(error: ApiError, event: Event | None = None) -> Event:
    return {"type": "error", **body(error)}


class Echo:
    """A route that says what it hears, or whatever `flood` asks for without an end."""

    def __init__(self) -> None:
        self.sent, self.open, self.busy, self.ended = 0, 0, False, ""

    async def run(self, socket: WebSocket) -> None:
        await socket.accept()
        live = Live(socket, told_of)
        self.open += 1

        async def take(event: Event) -> None:
            if event["type"] == "flood":
                self.busy = True
                while True:
                    self.sent += await live.play(_bytes(64 * 1024))
            await live.tell(event)

        try:
            await live.hold(asyncio.Event().wait(), take, lambda: self.busy)  # type: ignore[arg-type]
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        finally:
            self.open -= 1


async def _bytes(count: int) -> AsyncIterator[bytes]:
    yield bytes(count)


@contextmanager
def echo(**rules: Any) -> Iterator[tuple[Echo, str]]:
    """The route, and the address of its server."""
    made = Echo()
    app = protect(live_routes(PATH, made.run), Rules(Keys.load(None), **rules))
    with served(app, partial(Connection, crowd=Crowd(3, 3), live=[PATH])) as port:
        yield made, f"http://127.0.0.1:{port}"


def answers(events: Events) -> bool:
    events.say("a", n=1)
    return events.hear() == {"type": "a", "n": 1}


def test_a_reader_who_does_not_read_pins_what_the_kernel_holds_and_is_cut_off() -> None:
    with echo(stall=0.5) as (route, url):
        with opened(url, PATH, max_queue=1) as stuck, opened(url, PATH) as other:
            stuck.say("flood")
            wait_until(lambda: route.ended == "ReaderStalled")
            assert route.sent < 32 * 2**20
            assert answers(other)
        wait_until(lambda: not route.open)


def test_who_says_nothing_for_long_is_let_go_but_not_while_something_is_done_for_him() -> None:
    with echo(idle=0.2) as (route, url), opened(url, PATH) as events:
        assert answers(events)
        told = events.hear()
        assert isinstance(told, dict) and told["error"]["code"] == "request_timeout"
        with pytest.raises(ConnectionClosed) as caught:
            events.hear()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1001
        route.busy = True
        with opened(url, PATH) as other:
            time.sleep(0.6)
            assert answers(other)


def test_a_message_in_too_many_pieces_ends_its_connection() -> None:
    with echo() as (_, url), opened(url, PATH) as events:
        events.socket.send(iter(['{"type": ', '"a", ', '"n": 1}']))
        assert events.hear() == {"type": "a", "n": 1}
        with suppress(ConnectionClosed):  # it may be closed while it is sent
            events.socket.send(" " for _ in range(3000))
        with pytest.raises(ConnectionClosed) as caught:
            events.hear()
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


def test_bytes_and_what_is_no_json_are_told_and_the_rest_goes_on() -> None:
    with echo() as (_, url), opened(url, PATH) as events:
        for said in (b"a", "a", "[]", '{"type": 3}', '{"a": NaN}'):
            events.socket.send(said)
            told = events.hear()
            assert isinstance(told, dict) and told["error"]["type"] == "invalid_request_error"
        assert answers(events)


def refused(url: str) -> bool:
    """Whether one more is answered 503, or closed before it has asked."""
    asked = HTTPConnection(url.removeprefix("http://"), timeout=5)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
    try:
        asked.request("GET", PATH, headers=upgrade)
        return asked.getresponse().status == 503
    except (HTTPException, ConnectionError):
        return True
    finally:
        asked.close()


def test_there_are_no_more_connections_than_allowed_and_each_that_ends_makes_room() -> None:
    with echo() as (route, url):
        for _ in range(5):
            with opened(url, PATH) as one, opened(url, PATH) as two, opened(url, PATH) as three:
                assert answers(one) and answers(two) and answers(three)
                assert refused(url)
            wait_until(lambda: not route.open)


def test_a_server_that_ends_takes_none_and_a_page_of_another_site_gets_none() -> None:
    draining: list[bool] = []
    with echo(draining=lambda: bool(draining)) as (_, url):
        with pytest.raises(InvalidStatus) as caught, opened(url, PATH, {"Origin": "http://else.example"}):
            pass
        assert caught.value.response.status_code == 403
        draining.append(True)
        with pytest.raises(InvalidStatus) as caught, opened(url, PATH):
            pass
        assert caught.value.response.status_code == 503
        assert b"server_draining" in (caught.value.response.body or b"")
        assert caught.value.response.headers["x-request-id"]


def test_a_server_that_ends_says_so_on_what_is_open() -> None:
    with ExitStack() as client:
        with echo() as (route, url):
            events = client.enter_context(opened(url, PATH))
            assert answers(events)
        with pytest.raises(ConnectionClosed) as caught:
            events.hear()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
        assert route.ended == "ClientGone" and not route.open
