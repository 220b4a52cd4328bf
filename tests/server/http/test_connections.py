"""The edge over real sockets: slow clients, broken clients, and the official one."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import openai
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from omnimuse.core.errors import CapacityError, NumericalError
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.connections import Connection, Crowd
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.sse import EventStream
from omnimuse.server.http.watch import cancel_on_disconnect
from tests.server.uvicorn_thread import served

KEY = "k" * 32
PATIENCE = 60.0
"""Seconds after which a test gives up waiting for what must come; a busy machine takes its time."""


class Impatient(Connection):
    """A connection whose headers must come at once."""

    header_patience = 0.4
    period = 0.1


class Site:
    """An app with a route for each kind of answer; `log` says what happened to the work behind it."""

    def __init__(self, keys: Keys) -> None:
        self.log: list[str] = []
        self.full = False
        rules = Rules(keys, max_body=300_000, patience=1.0, stall=0.5)
        rules = replace(rules, drawing=frozenset({"/v1/images/generations"}), check_room=self.check_room)
        answers = {
            "/v1/images/generations": self.generate,
            "/v1/echo": self.echo,
            "/v1/flood": self.flood,
            "/v1/wait": self.wait,
            "/v1/stream": self.stream,
        }
        routes = [Route(path, answer, methods=["GET", "POST"]) for path, answer in answers.items()]
        self.app = protect([*routes, Route("/livez", self.alive)], rules)

    def check_room(self, tenant: str) -> None:
        if self.full:
            raise CapacityError("too much is in progress", 7.0)

    async def alive(self, request: Request) -> Response:
        return PlainTextResponse("alive")

    async def echo(self, request: Request) -> Response:
        return JSONResponse(await read_json(request))

    async def generate(self, request: Request) -> Response:
        self.log.append("asked")
        fields = await read_json(request)
        if fields.get("stream"):
            return EventStream(self._events(0.0), done=True)
        raise refusal("idempotency_conflict", "the key was used for another request")

    async def stream(self, request: Request) -> Response:
        return EventStream(self._events(60.0))

    async def _events(self, pause: float) -> AsyncIterator[tuple[str | None, object]]:
        try:
            yield "image_generation.partial_image", {"type": "image_generation.partial_image", "b64_json": "eA=="}
            await asyncio.sleep(pause)
            raise NumericalError("the output is not a number")
        finally:
            self.log.append("closed")

    async def flood(self, request: Request) -> Response:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 65536

        return StreamingResponse(endless())

    async def wait(self, request: Request) -> Response:
        await cancel_on_disconnect(request, self._work())
        return PlainTextResponse("done")

    async def _work(self) -> None:
        self.log.append("began")
        try:
            await asyncio.sleep(60)
        finally:
            self.log.append("stopped")

    def until(self, word: str) -> None:
        end = time.monotonic() + PATIENCE
        while word not in self.log:
            assert time.monotonic() < end, f"{word!r} did not happen: {self.log}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(Keys.load(None))


@pytest.fixture(scope="module")
def port(site: Site) -> Iterator[int]:
    with served(site.app, Impatient) as port:
        yield port


Connect = Callable[[bytes], socket.socket]


@pytest.fixture
def connect(port: int, site: Site) -> Iterator[Connect]:
    """Opens connections that have sent something; afterwards the server must still be there."""
    opened: list[socket.socket] = []
    site.log.clear()

    def begin(data: bytes) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        opened[-1].sendall(data)
        return opened[-1]

    yield begin
    head, content = answer(begin(get("/livez", "Connection: close\r\n")))
    assert b" 200 " in head and content == b"alive"
    for connection in opened:
        connection.close()


def get(path: str, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode()


def answer(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of one answer."""
    with connection.makefile("rb") as file:
        lines = list(iter(file.readline, b"\r\n"))
        head = b"".join(lines)
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        return head, file.read(length)


def ended(connection: socket.socket, most: int = 0) -> bool:
    """Whether the server has closed; at most `most` bytes may still come."""
    try:
        while chunk := connection.recv(65536):
            most -= len(chunk)
            if most < 0:
                return False
    except ConnectionResetError:
        return True
    return True


def drip(connection: socket.socket, data: bytes) -> None:
    """Send one byte twenty times a second."""
    for letter in data:
        connection.sendall(bytes([letter]))
        time.sleep(0.05)


JSON = "Content-Type: application/json\r\n"


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_http_gets_our_json_and_an_id(connect: Connect, data: bytes) -> None:
    head, body = answer(connect(data))
    assert b" 400 " in head and b"x-request-id: " in head
    assert json.loads(body)["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(("version", "length"), [("1.1", "Content-Length: 5\r\n"), ("1.0", "")])
def test_a_body_that_ends_in_two_places_is_refused_and_nothing_behind_it_is_a_request(
    connect: Connect, version: str, length: str
) -> None:
    head = f"POST /echo HTTP/{version}\r\nHost: localhost\r\n{length}Transfer-Encoding: chunked\r\n\r\n"
    connection = connect(head.encode() + b"0\r\n\r\n" + get("/livez"))
    said = b""
    while piece := connection.recv(4096):
        said += piece
    assert said.startswith(b"HTTP/1.1 400 ") and said.count(b"x-request-id: ") == 1


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\nHost: loc"])
def test_headers_that_do_not_come_are_not_waited_for(connect: Connect, data: bytes) -> None:
    assert connect(data).recv(1) == b""


def test_headers_in_drips_are_not_waited_for(connect: Connect) -> None:
    connection = connect(get("/livez"))
    assert b" 200 " in answer(connection)[0]
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        drip(connection, b"GET /livez HTTP/1.1\r\nHost: localhost" * 10)


def test_a_connection_that_is_kept_open_serves_again_later(connect: Connect) -> None:
    connection = connect(get("/livez"))
    assert b" 200 " in answer(connection)[0]
    time.sleep(0.6)
    connection.sendall(get("/livez"))
    assert b" 200 " in answer(connection)[0]


def test_a_body_in_drips_is_refused_with_408(connect: Connect) -> None:
    connection = connect(get("/v1/echo", JSON + "Content-Length: 200000\r\n", "POST"))
    connection.sendall(b'{"a": ')
    head, body = answer(connection)
    assert b" 408 " in head and json.loads(body)["error"]["code"] == "request_timeout"


def test_a_chunked_body_that_is_too_long_is_refused_with_413_and_the_connection_ends(connect: Connect) -> None:
    connection = connect(get("/v1/echo", JSON + "Transfer-Encoding: chunked\r\n", "POST"))
    chunk = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    for _ in range(7):
        connection.sendall(chunk)
    head, body = answer(connection)
    assert b" 413 " in head and json.loads(body)["error"]["code"] == "request_too_large"
    assert ended(connection)


@pytest.fixture
def full(site: Site) -> Iterator[None]:
    site.full = True
    yield
    site.full = False


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_full_queue_is_said_before_anything_of_the_body_was_sent(connect: Connect, expect: str) -> None:
    headers = JSON + expect + "Content-Length: 200000\r\n"
    connection = connect(get("/v1/images/generations", headers, "POST"))
    head, body = answer(connection)
    assert head.startswith(b"HTTP/1.1 429 ") and b"connection: close" in head and b"retry-after: 7" in head
    assert json.loads(body)["error"]["code"] == "queue_full"
    assert ended(connection)


@pytest.mark.usefixtures("full")
def test_a_client_that_sends_all_before_it_reads_meets_the_answer_and_no_broken_connection(connect: Connect) -> None:
    connection = connect(get("/v1/images/generations", JSON + "Content-Length: 250000\r\n", "POST"))
    for _ in range(5):
        time.sleep(0.1)
        connection.sendall(b"x" * 50_000)
    assert b" 429 " in answer(connection)[0]
    assert connection.recv(1) == b""  # an orderly end, no reset


def test_a_small_body_that_nobody_reads_does_not_end_the_connection(connect: Connect) -> None:
    connection = connect(get("/nowhere", JSON + "Content-Length: 2\r\n", "POST") + b"{}")
    assert b" 404 " in answer(connection)[0]
    connection.sendall(get("/livez"))
    assert b" 200 " in answer(connection)[0]


def test_a_reader_who_does_not_read_is_dropped_and_others_are_served(connect: Connect, site: Site) -> None:
    connection = connect(get("/v1/flood"))
    assert connection.recv(100)
    assert answer(connect(get("/livez", "Connection: close\r\n")))[1] == b"alive"
    time.sleep(1.5)
    assert ended(connection, 64 * 2**20)  # what the kernel holds may come, what the server held is dropped


# -- connections that are held ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "body", "status"),
    [
        ("/v1/echo", "POST", "Content-Length: 100\r\n", b" 415 "),
        ("/livez", "GET", "Content-Length: 100\r\n", b" 200 "),
        ("/nowhere", "POST", "Content-Length: 100\r\n", b" 404 "),
        ("/livez", "GET", "Transfer-Encoding: chunked\r\n", b" 200 "),
    ],
)
@pytest.mark.parametrize("drips", [0, 3])
def test_a_body_that_is_announced_and_never_sent_after_the_answer_holds_no_connection(
    connect: Connect, path: str, method: str, body: str, status: bytes, drips: int
) -> None:
    connection = connect(get(path, body, method))
    assert status in answer(connection)[0]
    try:
        for _ in range(drips):
            connection.sendall(b"1")
            time.sleep(0.02)
    except ConnectionError:
        return
    assert ended(connection)


def test_the_rest_of_a_body_after_the_answer_leaves_no_connection_without_a_timer(port: int) -> None:
    """Its last byte stops the timer of a connection that is kept open, and nothing would start it again."""

    class Idle(Impatient):
        idle_patience = 0.4

    with served(Site(Keys.load(None)).app, Idle) as fresh:
        connection = socket.create_connection(("127.0.0.1", fresh), timeout=PATIENCE)
        connection.sendall(get("/livez", "Content-Length: 3\r\n"))
        assert b" 200 " in answer(connection)[0]
        connection.sendall(b"123")
        assert ended(connection)
        connection.close()


def test_no_address_has_more_connections_than_it_may_and_all_together_no_more_either() -> None:
    crowd = Crowd(5, 3)
    with served(Site(Keys.load(None)).app, partial(Connection, crowd=crowd)) as port:
        opened: list[socket.socket] = []

        def begin(source: str) -> socket.socket:
            opened.append(socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)))
            return opened[-1]

        def served_from(source: str) -> bool:
            connection = begin(source)
            connection.sendall(get("/livez", "Connection: close\r\n"))
            return b" 200 " in answer(connection)[0]

        held = [begin("127.0.0.1") for _ in range(3)]
        too_many = begin("127.0.0.1")
        assert b" 503 " in (head := answer(too_many)[0]) and b"retry-after" in head
        assert ended(too_many)
        held += [begin("127.0.0.2") for _ in range(2)]
        for source in ("127.0.0.2", "127.0.0.3"):
            told = json.loads(answer(begin(source))[1])["error"]
            assert told["code"] == "too_many_connections" and "5 connections" in told["message"]
        for connection in held:  # who came in time is served
            connection.sendall(get("/livez", "Connection: close\r\n"))
            assert b" 200 " in answer(connection)[0]
        end = time.monotonic() + PATIENCE
        while not served_from("127.0.0.3"):
            assert time.monotonic() < end, "places of those who left are free again"
        for connection in opened:
            connection.close()


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/wait", "/livez"])
def test_a_bad_chunk_is_answered_and_leaves_no_traceback(
    connect: Connect, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with caplog.at_level(logging.INFO):
        connection = connect(get(path, JSON + "Transfer-Encoding: chunked\r\n", "POST") + b"2\r\n{}\r\n")
        time.sleep(0.1)
        connection.sendall(b"no chunk\r\n\r\n")
        assert connection.recv(10) in (b"HTTP/1.1 4", b"HTTP/1.1 2", b"")
        connection.close()
        assert b" 200 " in answer(connect(get("/livez")))[0]
    assert "Traceback" not in caplog.text and not [record for record in caplog.records if record.exc_info]


def test_an_upgrade_to_a_websocket_is_an_ordinary_request(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    asked = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    connection = connect(get("/livez", asked))
    head, content = answer(connection)
    assert head.startswith(b"HTTP/1.1 200 ") and content == b"alive"
    assert not caplog.records


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/stream"])
def test_work_stops_when_the_connection_closes(connect: Connect, site: Site, path: str) -> None:
    connection = connect(get(path, JSON + "Content-Length: 2\r\n", "POST") + b"{}")
    if path == "/v1/wait":
        site.until("began")
    else:
        assert connection.recv(100)
    connection.close()
    site.until("stopped" if path == "/v1/wait" else "closed")


# -- the official client -------------------------------------------------------------------------------------


def client(port: int, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, timeout=PATIENCE)


def test_the_official_client_reads_our_errors_and_does_not_repeat_what_is_waste(port: int, site: Site) -> None:
    site.log.clear()
    with client(port) as ours, pytest.raises(openai.ConflictError) as caught:
        ours.images.generate(prompt="x", extra_headers={"x-request-id": "mine-1"})
    assert caught.value.code == "idempotency_conflict" and caught.value.request_id == "mine-1"
    assert site.log == ["asked"]  # it would have tried three times


def test_the_official_client_reads_a_stream_and_the_error_in_it(port: int) -> None:
    with client(port) as ours:
        with ours.images.generate(prompt="x", stream=True) as events:
            first = next(iter(events))
            with pytest.raises(openai.APIError) as caught:
                next(iter(events))
    assert first.type == "image_generation.partial_image"
    assert caught.value.code == "numerical_error"


def test_the_official_client_is_let_in_with_its_key_only(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    with served(Site(Keys.load(tmp_path / "keys")).app) as port:
        with client(port, "wrong") as theirs, pytest.raises(openai.AuthenticationError) as caught:
            theirs.images.generate(prompt="x")
        assert caught.value.code == "invalid_api_key"
        with client(port, KEY) as ours, pytest.raises(openai.ConflictError):
            ours.images.generate(prompt="x")
