"""Pictures by address: who may be asked, what is dialled, and how little an address can do with the answer."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.media.fetch import Address, FetchError, FetchRules, checked_host, fetch, from_data_url, is_public

HOST = "images.example.com"
PICTURE = bytes(range(256)) * 40

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


CLOSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.8.9.1 168.63.129.16 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.7
    203.0.113.9 192.31.196.1 192.52.193.254 192.175.48.6 198.19.255.1
    224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1 100::1
    2001::1 2001:db8::1 2001:10::1 2002:7f00:1::1 2002:a9fe:a9fe:: fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1
    3fff::1 4000::1 5f00::1 3ffe::1 2620:4f:8000::1 2001:4:112::1 2001:20::1 2001:1ff:ffff::1 fd20:ce::254
"""


def never(address: Address) -> bool:
    raise AssertionError(f"{address} was looked at")


# -- the rule of addresses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", CLOSED.split())
def test_an_address_that_is_not_of_the_open_internet_is_refused(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "8.8.8.8",
        "93.184.216.34",
        "2606:4700::1111",
        "192.31.195.1",
        "2620:4f:7fff::1",
        "2001:200::1",
        "2a00:1450:4001::64",
    ],
)
def test_an_address_of_the_open_internet_is_allowed(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


# -- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "images.example.com/a.png",
        "//images.example.com/a.png",
        "file:///etc/passwd",
        "file://images.example.com/etc/passwd",
        "gopher://images.example.com/",
        "ftp://images.example.com/a.png",
        "jar:http://images.example.com/!/",
        "dict://images.example.com:11211/",
        "blob:http://images.example.com/x",
        "javascript:alert(1)",
        "http:images.example.com",
        "http:///images.example.com",
        "http://",
        "http://:80/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[images.example.com]/",
        "http://[::1",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/",
        "http://metadata.google.internal/",
        "http://images.example.com./a.png",
        "http://images.example.com.evil.org/",
        "http://evil.org/images.example.com",
        "http://evil.org#images.example.com",
        "http://evil.org?images.example.com",
        "http://xn--images-example.com/",
        "http://sub.images.example.com/",
        "http://user@images.example.com/",
        "http://user:secret@images.example.com/",
        "http://images.example.com@evil.org/",
        "http://images.example.com:80@evil.org/",
        "http://evil.org\\@images.example.com/",
        "http://images.example.com\\@evil.org/",
        "http:\\\\images.example.com\\a.png",
        "http://images.example.com:22/",
        "http://images.example.com:443/",
        "https://images.example.com:80/",
        "http://images.example.com:99999/",
        "http://images.example.com:-1/",
        "http://images.example.com:8o/",
        "http://images.example.com/\r\nHost: evil.org",
        "http://images.example.com/a b.png",
        "http://images.example.com/\x00",
        "\thttp://images.example.com/",
        "http://images\u3002example\u3002com/",
        "http://\u24d8mages.example.com/",
        "http://images.example.com/" + "a" * 5000,
    ],
)
def test_a_url_that_leads_elsewhere_or_could_is_refused_before_any_name_is_looked_up(url: str) -> None:
    rules = FetchRules(frozenset({HOST}), allowed=never)
    with pytest.raises(FetchError) as caught:
        asyncio.run(fetch(url, rules))
    assert caught.value.code == "url_not_allowed"


def test_nothing_is_fetched_where_no_host_is_named() -> None:
    with pytest.raises(FetchError, match="fetches no addresses"):
        asyncio.run(fetch(f"https://{HOST}/a.png", FetchRules(allowed=never)))


def test_a_data_url_is_always_read_strictly_and_up_to_its_bound() -> None:
    text = base64.b64encode(PICTURE).decode()
    for head in ("data:image/png;base64,", "DATA:;base64,", "data:image/svg+xml;charset=utf-8;base64,"):
        assert asyncio.run(fetch(head + text, FetchRules())) == PICTURE
    for bad in (
        "data:,hello",
        "data:image/png,x",
        f"data:image/png;base64,{text[:8]} {text[8:]}",
        f"data:image/png;base64,{text[:-1]}",
        "data:image/png;base64,é",
        f"data:image/png;base64,{text[:8]}-_{text[10:]}",
        "data:image/png;base64",
        "data:" + ";" * 10_000 + "base64,",
    ):
        with pytest.raises(FetchError) as caught:
            from_data_url(bad, 10**6)
        assert caught.value.code == "invalid_image", bad[:60]
    with pytest.raises(FetchError) as caught:
        from_data_url("data:image/png;base64," + text, len(PICTURE) - 10)
    assert caught.value.code == "image_too_large"


def test_a_host_is_a_name_and_perhaps_a_port() -> None:
    assert [checked_host(text) for text in ("A.example.com", "a-1.b:8080", "localhost", "10.0.0.1")] == [
        "a.example.com",
        "a-1.b:8080",
        "localhost",
        "10.0.0.1",
    ]
    for bad in (
        "",
        "*",
        "*.example.com",
        "http://a",
        "a/b",
        "a:b",
        "a:0",
        "a:99999",
        "a.",
        "a..b",
        "é.com",
        "[::1]",
        "a b",
    ):
        with pytest.raises(ValueError, match="is no host"):
            checked_host(bad)
    with pytest.raises(ValueError, match="is no host"):
        checked_host("a" * 10_000 + "!")


# -- answers ---------------------------------------------------------------------------------------------------------


def asked(answer: Answer, change: Callable[[FetchRules], FetchRules] = lambda rules: rules) -> tuple[bytes, bytes]:
    """What is fetched from a server on this machine that says `answer`, and what that server was asked."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def main() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        rules = FetchRules(frozenset({f"127.0.0.1:{port}"}), seconds=5, allowed=lambda address: address.is_loopback)
        async with server:
            return await fetch(f"http://127.0.0.1:{port}/a.png?b=c#d", change(rules))

    content = asyncio.run(main())
    return content, b"".join(heard)


def says(*pieces: bytes, pause: float = 0.0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
WHOLE = OK + b"Content-Length: %d\r\n\r\n" % len(PICTURE)


def test_a_picture_is_fetched_with_a_request_that_tells_nothing() -> None:
    content, heard = asked(says(WHOLE, PICTURE))
    assert content == PICTURE
    lines = heard.decode().split("\r\n")
    assert lines[0] == "GET /a.png?b=c HTTP/1.1"
    assert {line.split(":")[0].lower() for line in lines[1:] if line} == {
        "host",
        "accept",
        "accept-encoding",
        "connection",
    }


def test_chunks_an_end_of_connection_and_an_early_hint_are_understood() -> None:
    chunked = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(PICTURE) + PICTURE + b"\r\n0\r\n\r\n"
    for pieces in ((chunked,), (OK + b"\r\n", PICTURE), (b"HTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE, PICTURE)):
        assert asked(says(*pieces))[0] == PICTURE


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (says(REDIRECT), "url_not_allowed"),
        (says(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "url_not_allowed"),
        (says(b"HTTP/1.1 206 Partial\r\nContent-Length: 0\r\n\r\n"), "url_not_allowed"),
        (says(WHOLE, PICTURE[:-1]), "url_not_allowed"),
        (says(b"SSH-2.0-OpenSSH\r\n\r\n"), "url_not_allowed"),
        (says(b""), "url_not_allowed"),
        (says(OK + b"X: " + b"y" * 10**6), "url_not_allowed"),
        (says(OK + b"Content-Length: 99999999999\r\n\r\n", *[bytes(10**5)] * 40), "image_too_large"),
        (says(OK + b"\r\n", *[bytes(10**5)] * 40), "image_too_large"),
    ],
    ids=["redirect", "missing", "part", "short", "no http", "silence", "headers", "huge", "endless"],
)
def test_an_answer_that_is_not_one_whole_file_is_refused(answer: Answer, code: str) -> None:
    with pytest.raises(FetchError) as caught:
        asked(answer, lambda rules: replace(rules, max_bytes=10**6))
    assert caught.value.code == code


def test_an_answer_in_drips_is_not_waited_for() -> None:
    with pytest.raises(FetchError, match="did not answer in full"):
        asked(says(WHOLE, *[b"x"] * 1000, pause=0.1), lambda rules: replace(rules, seconds=1.0))


def test_a_name_on_the_list_does_not_help_an_address_of_this_machine() -> None:
    with pytest.raises(FetchError, match="not on the open internet"):
        asked(says(WHOLE, PICTURE), lambda rules: replace(rules, allowed=is_public))


def test_one_bad_address_among_those_of_a_name_is_enough_and_only_checked_ones_are_dialled() -> None:
    looked: list[Address] = []

    def note(address: Address) -> bool:
        looked.append(address)
        return address.is_loopback and len(looked) < 2

    async def main() -> None:
        loop = asyncio.get_running_loop()
        found = {place[4][0] for place in await loop.getaddrinfo("localhost", 1)}
        rules = FetchRules(frozenset({"localhost:1"}), allowed=note)
        with pytest.raises(FetchError) as caught:
            await fetch("http://localhost:1/", rules)
        many = len(found) > 1
        assert ("open internet" in str(caught.value)) == many
        assert {str(address) for address in looked} <= found

    asyncio.run(main())


def test_nobody_there_and_an_unknown_name_are_told_alike() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        for host in (f"127.0.0.1:{port}", "no-such-name.invalid:80"):
            rules = FetchRules(frozenset({host}), allowed=lambda address: address.is_loopback)
            with pytest.raises(FetchError, match="no proper answer"):
                await fetch(f"http://{host}/", rules)

    asyncio.run(main())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_a_certificate_must_be_trusted_and_fit_the_name(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert", "-days", "2"]
    made += ["-subj", "/CN=x", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(made, check=True, cwd=tmp_path, capture_output=True, timeout=60)
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE + PICTURE)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity)
        port = server.sockets[0].getsockname()[1]
        hosts = frozenset({f"localhost:{port}", f"127.0.0.1:{port}"})
        rules = FetchRules(hosts, allowed=lambda address: address.is_loopback, trust=trusting)
        async with server:
            assert await fetch(f"https://localhost:{port}/", rules) == PICTURE
            for name, strict in (("localhost", replace(rules, trust=None)), ("127.0.0.1", rules)):
                with pytest.raises(FetchError, match="no proper answer"):
                    await fetch(f"https://{name}:{port}/", strict)

    asyncio.run(main())
