"""Bodies made to cost more than they weigh: whatever comes, the event loop goes on, and the work grows with the length.

The pauses of the loop are measured on the whole app, in seconds of computation.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from omnimuse.media.fetch import FetchError, from_data_url
from omnimuse.server.errors import ApiError
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.reading import FREE_CHUNKS, MAX_LINES, SMALLEST, Reading
from omnimuse.server.http.strict_json import LONG, MAX_JSON, DataUrl, Written, parse
from tests.server.asgi import Client, scope
from tests.server.loop_watch import LoopWatch
from tests.server.picture_server import service_in
from tests.server.video_rig import listening, rig

PAUSE = 0.05
"""Seconds that no body may keep the loop from its other work."""
IMAGES, CHAT, EDITS, VIDEOS = "/v1/images/generations", "/v1/chat/completions", "/v1/images/edits", "/v1/videos"
JSON, FORM = "application/json", "multipart/form-data; boundary=B"
MIB, END = 2**20, b"--B--\r\n"


def chat(url: str) -> bytes:
    part = {"type": "image_url", "image_url": {"url": url}}
    said = [{"role": "user", "content": [{"type": "text", "text": "a star"}, part]}]
    return json.dumps({"messages": said, "num_inference_steps": 1}).encode()


def part(name: str, content: bytes, file: bool = True) -> bytes:
    named = b'; filename="x"' if file else b""
    return (
        b'--B\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"'
        + named
        + b"\r\n\r\n"
        + content
        + b"\r\n"
    )


def names(count: int, last: str) -> bytes:
    """An object of so many names, with `last` at its end."""
    return ("{" + "".join(f'"{i}":0,' for i in range(count)) + f'"{last}":0}}').encode()


BODIES: dict[str, tuple[str, str, bytes]] = {
    "the last of many names is said twice": (IMAGES, JSON, names(45_000, "44999")),
    "many names": (IMAGES, JSON, names(45_000, "x")),
    "many objects": (IMAGES, JSON, b'{"prompt":[' + b"{}," * 22_000 + b"{}]}"),
    "many lists": (IMAGES, JSON, b'{"prompt":[' + b"[]," * 22_000 + b"[]]}"),
    "long numbers": (IMAGES, JSON, b'{"prompt":[' + (b"9" * 4000 + b",") * 400 + b"1]}"),
    "long fractions": (IMAGES, JSON, b'{"prompt":[' + (b"0." + b"9" * 4000 + b",") * 400 + b"1]}"),
    "one long text": (IMAGES, JSON, b'{"prompt":"' + b"x" * (MAX_JSON - 100) + b'"}'),
    "a long text of escapes": (IMAGES, JSON, b'{"prompt":"' + b"\\n" * (MAX_JSON // 2 - 100) + b'"}'),
    "a long text of surrogates": (IMAGES, JSON, b'{"prompt":"' + b"\\ud83d\\udc1e" * (MAX_JSON // 12 - 100) + b'"}'),
    "a long text that is not Latin": (IMAGES, JSON, b'{"prompt":"' + "\u732b".encode() * (MAX_JSON // 3 - 100) + b'"}'),
    "many broken surrogates": (IMAGES, JSON, b'{"a":[' + b'"\\ud800",' * 45_000 + b"0]}"),
    "an unknown field with everything": (IMAGES, JSON, b'{"nothing":[' + b'"xxxxxxxxxxxxxxxx",' * 45_000 + b"0]}"),
    "a known field with everything": (IMAGES, JSON, b'{"size":[' + b'"xxxxxxxxxxxxxxxx",' * 45_000 + b"0]}"),
    "deep": (IMAGES, JSON, b'{"a":' + b"[" * 45_000),
    "only quotes": (IMAGES, JSON, b'"' * (MAX_JSON - 1)),
    "far too much text": (CHAT, JSON, b'{"prompt":"' + b"x" * (40 * MIB) + b'"}'),
    "commas without an end": (CHAT, JSON, b"," * (8 * MIB)),
    "many short data: URLs": (CHAT, JSON, b'{"x":[' + b'"data:"' * (6 * MIB) + b"]}"),
    "a long data: URL that is no base64": (CHAT, JSON, chat("data:image/png;base64," + "!" * (40 * MIB))),
    "a long data: URL that is no picture": (CHAT, JSON, chat("data:image/png;base64," + "AAAA" * (10 * MIB))),
    "a form of empty lines": (EDITS, FORM, part("image", b"\r\n" * (8 * MIB)) + END),
    "a form of almost boundaries": (EDITS, FORM, part("image", b"\r\n--\r\n-B" * MIB) + END),
    "a form of headers": (EDITS, FORM, (b"--B\r\n" + b"x: y\r\n" * 2000) * 60),
    "a form of a long header": (EDITS, FORM, b"--B\r\nx: " + b"y" * (4 * MIB)),
    "a large file": (EDITS, FORM, part("prompt", b"x", False) + part("image", b"\0" * (40 * MIB)) + END),
    "a large file that begins as a picture": (
        EDITS, FORM, part("prompt", b"x", False) + part("image", b"\x89PNG\r\n\x1a\n" + b"\0" * (40 * MIB)) + END,
    ),
    "a form of many fields": (EDITS, FORM, b"".join(part(f"f{i}", b"x" * 200_000, False) for i in range(63)) + END),
}  # fmt: skip


def pieces(content: bytes, size: int = 64 * 1024) -> Iterable[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


class Wire(Client):
    """A client whose pieces come one at a time, as from a network."""

    def __init__(self, chunks: Iterable[bytes] = (b"",)) -> None:
        super().__init__(chunks)
        self.pieces: list[bytes] = []

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        return await super().receive()

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.pieces.append(message.pop("body", b""))
        await super().send(message)


async def paused(app: Any, sent: tuple[str, str, bytes]) -> tuple[int, float]:
    """The status of the answer, and the loop's longest pause."""
    path, kind, content = sent
    asked = scope("POST", path, {"content-type": kind, "content-length": str(len(content))})
    client = Wire(pieces(content))
    async with LoopWatch() as watch:
        await app(asked, client.receive, client.send)
    return client.answer.status, watch.longest


def test_no_body_keeps_the_event_loop_from_its_work(tmp_path: Path) -> None:
    late = {}

    async def main() -> None:
        async with service_in(tmp_path) as (app, _):
            for name, body in BODIES.items():
                best = 1e9
                for _ in range(4):  # what happens each time is the body's doing
                    status, pause = await paused(app, body)
                    assert 400 <= status < 500, f"{name}: {status}"
                    if (best := min(best, pause)) <= PAUSE:
                        break
                else:
                    late[name] = best

    asyncio.run(main())
    assert not late


def test_a_list_of_a_hundred_long_prompts_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def main() -> float:
        async with rig(tmp_path, ready=False) as parts:
            for _ in range(100):
                await parts.submit("\N{LADY BEETLE}" * 32_000)
            best = 1e9
            for _ in range(4):
                client = Wire()
                async with LoopWatch() as watch:
                    await parts.app(scope(path="/v1/videos", query="limit=100"), client.receive, client.send)
                assert len(json.loads(b"".join(client.pieces))["data"]) == 100
                best = min(best, watch.longest)
            return best

    assert asyncio.run(main()) <= PAUSE


def cpu(content: bytes) -> float:
    """Seconds of computation that `parse` takes, at best."""
    best = 1e9
    for _ in range(3):
        began = time.thread_time()
        with suppress(ApiError):
            parse(bytearray(content))
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize(
    "make",
    [
        lambda size: names(size, str(size - 1)),
        lambda size: names(size, "x"),
        lambda size: b'{"a":[' + b'{"b":0},' * size + b"0]}",
        lambda size: b'{"a":"' + b"\\ud83d\\udc1e" * size + b'"}',
        lambda size: b'{"a":[' + b'"data:",' * size + b"0]}",
        lambda size: b'{"a":' + b'"data:' * size,
        lambda size: chat("data:image/png;base64," + "A" * 100 * size),
    ],
    ids=range(7),
)
def test_four_times_the_body_is_about_four_times_the_work(make: Any) -> None:
    small, large = make(6_000), make(24_000)
    assert cpu(large) < 8 * cpu(small) + 0.01


# -- long data: URLs -------------------------------------------------------------------------------------------------

URL = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 1024).decode()


def test_a_long_data_url_is_kept_apart_and_gives_its_bytes() -> None:
    assert len(URL) > LONG
    read = parse(bytearray(json.dumps({"a": "x", "b": [URL, {"c": URL}], "d": "data:short"}).encode()))
    assert (read["a"], read["d"]) == ("x", "data:short")
    for url in (read["b"][0], read["b"][1]["c"]):
        assert isinstance(url, DataUrl) and bytes(url.content) == URL.encode()
        assert from_data_url(url.content, 2**20) == bytes(range(256)) * 1024


def test_long_urls_in_markdown_are_kept_apart_in_their_order_and_the_text_around_them_stays() -> None:
    other = URL[:-4] + "AAAA"
    text = f'a "cat" ![one]({URL}) and ![small](data:image/png;base64,AA==) and ![two]({other}) \\ end'
    read = parse(bytearray(json.dumps({"a": text, "b": URL, "c": [f"![x]({URL})"], "d": "](data:"}).encode()))
    assert isinstance(read["a"], Written) and len(read["a"]) > 2 * LONG
    assert [bytes(url.content) for url in read["a"].urls] == [URL.encode(), other.encode()]
    assert read["a"].startswith('a "cat" ![one](data:image/png') and read["a"].endswith(") \\ end")
    assert isinstance(read["b"], DataUrl) and bytes(read["b"].content) == URL.encode()
    assert bytes(read["c"][0].urls[0].content) == URL.encode()
    assert read["d"] == "](data:"


def test_what_is_no_whole_address_in_markdown_comes_whole() -> None:
    body = {"a": f"![x]({URL}", "b": ") after", "c": f"![x]({URL} 'title\n')", "d": URL}
    read = parse(bytearray(json.dumps(body).encode()))
    assert {name: read[name] for name in "abc"} == {name: body[name] for name in "abc"}
    assert isinstance(read["d"], DataUrl)


def test_two_long_urls_are_one_text_only_if_they_are_equal() -> None:
    one, other, again = (
        str(parse(bytearray(json.dumps({"a": url}).encode()))["a"]) for url in (URL, URL[:-4] + "AAAA", URL)
    )
    assert one == again != other


@pytest.mark.parametrize(
    "text",
    [
        'before "' + URL + '" after',  # inside another string, quotes escaped
        URL.replace("/", "\\/"),
        URL + "\u732b\n",
        "x" * (LONG + 10),
    ],
)
def test_other_long_texts_come_whole(text: str) -> None:
    assert parse(bytearray(json.dumps({"a": text}).encode())) == {"a": text}


def test_what_is_no_json_is_not_made_json_by_keeping_urls_apart() -> None:
    for content in (f'{{"a": {URL}}}', f'{{"a" "{URL}"}}', f'{{"a": "x"{URL}"}}', f'{{"a": "{URL}', f'"{URL}"'):
        with pytest.raises(ApiError) as caught:
            parse(bytearray(content.encode()))
        assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("bad", ["=" + URL[100:], URL[100:300_000] + "A=" + URL[300_002:], URL[100:] + "\n", "\u00e9"])
def test_base64_is_as_strict_in_pieces_as_whole(bad: str) -> None:
    whole = "data:image/png;base64," + URL[22:100] + bad
    for url in (whole, memoryview(whole.encode())):
        with pytest.raises(FetchError) as caught:
            from_data_url(url, 2**30)
        assert caught.value.code == "invalid_image"


# -- HTTP itself -----------------------------------------------------------------------------------------------------


def events_of(*data: bytes) -> int:
    """How many events h11 made of `data` before it was done or refused."""
    reading, count = Reading(64 * 1024), 0
    for piece in data:
        reading.receive_data(piece)
        while (event := reading.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            count += 1
            assert event is not None
    return count


def test_a_head_of_thousands_of_lines_is_refused_before_it_is_taken_apart() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    assert events_of(head + b"a: b\r\n" * (MAX_LINES - 3) + b"\r\n") == 2
    lines = b"a:\r\n" * (MAX_LINES + 10)
    for cut in (len(lines), 1000, 1):
        with pytest.raises(h11.RemoteProtocolError, match="lines"):
            events_of(head, *pieces(lines, cut))


def test_lines_of_a_body_and_of_earlier_requests_are_not_lines_of_a_head() -> None:
    body = b"\r\n" * 1000
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n" + body
    assert events_of(*pieces(request, 7)) > 2
    assert events_of(request) == 3


def test_a_body_in_thousands_of_tiny_chunks_is_refused() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(h11.RemoteProtocolError, match="tiny"):
        events_of(head, *[b"1\r\na\r\n"] * (FREE_CHUNKS + 100))
    chunk = b"%x\r\n" % SMALLEST + b"x" * SMALLEST + b"\r\n"
    assert events_of(head, *[b"1\r\na\r\n"] * 1000, *[chunk] * (2 * FREE_CHUNKS)) > 2 * FREE_CHUNKS


GET, POST = (f"{method} /v1/echo HTTP/1.1\r\nHost: localhost\r\n".encode() for method in ("GET", "POST"))
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
FLOODS = {
    "lines of a head": GET + b"a:\r\n" * 60_000,
    "one long header": GET + b"x: " + b"a" * 200_000,
    "empty lines": b"\r\n" * 100_000,
    "tiny chunks": CHUNKED + b"1\r\na\r\n" * 100_000,
    "extensions of chunks": CHUNKED + (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 2000,
    "a large body": POST + b"Content-Length: 8000000\r\n\r\n" + b"x" * 8_000_000,
    "a body, then tiny chunks": (
        POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000 + CHUNKED + b"1\r\na\r\n" * 20_000
    ),
    "many requests at once": (GET + b"\r\n") * 3000,
    "many small bodies at once": (POST + b"Content-Length: 3\r\n\r\nabc") * 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_nothing_that_comes_over_a_socket_keeps_the_event_loop_from_its_work(name: str) -> None:
    async def echo(request: Request) -> Response:
        await request.body()
        return Response(b"ok")

    async def flood(port: int) -> float:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        async with LoopWatch() as watch:
            with suppress(ConnectionError):
                for piece in pieces(FLOODS[name]):
                    writer.write(piece)
                    await asyncio.wait_for(writer.drain(), 20)
                await asyncio.sleep(0.1)
        writer.transport.abort()
        return watch.longest

    async def main() -> float:
        app = protect([Route("/v1/echo", echo, methods=["GET", "POST"])], Rules(Keys.load(None)))
        async with listening(app) as url:
            port = int(url.rpartition(":")[2])
            return min([await flood(port) for _ in range(3)])

    assert asyncio.run(main()) <= PAUSE
