"""Pictures and videos by address: `data:` URLs, and http(s) URLs of hosts that an operator has named; nothing else.

A name is looked up once; unless every address it has is a public one, nothing is dialled, and what is dialled is one of
those addresses. No redirects, no proxies, no cookies, no credentials, a bound on bytes and on time, and a certificate
that fits the name. Called by the server's front process; what it returns is as untrusted as an upload.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import h11

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import RequestError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAME = re.compile(r"(?:[a-z0-9-]{1,63}\.)*[a-z0-9-]{1,63}", re.ASCII)
_PRINTABLE = re.compile(r"[!-~]{1,4096}")
_DATA = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.ASCII | re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "2001::/23"),  # assignments for protocols, Teredo among them
        *("192.88.99.0/24", "2002::/16"),  # relays of 6to4, which leads on to any address of version 4
        *("192.31.196.0/24", "192.175.48.0/24", "2620:4f:8000::/48"),  # AS112: answers for private names
        "192.52.193.0/24",  # tunnels of multicast
        *("198.18.0.0/15", "2001:db8::/32", "3fff::/20"),  # tests and documentation
        "3ffe::/16",  # the 6bone, given back
        "168.63.129.16/32",  # a cloud's own services
    )
)
"""What is not of the open internet although it looks so, or not every Python knows: IANA's registries of special
addresses, less what `ipaddress` counts as private or reserved in every version."""
_HEADERS = 16 * 1024  # bytes of a response before its body
_PIECE = 256 * 1024  # characters of base64, four of which are three bytes


class FetchError(RequestError):
    """A picture or video that is not fetched; `code` is "url_not_allowed", "invalid_image" or "image_too_large"."""

    def __init__(self, message: str, code: str = "url_not_allowed") -> None:
        super().__init__(message, "url")
        self.code = code


def is_public(address: Address) -> bool:
    """Whether `address` is one of the open internet: nothing private, special, or wrapped around another address."""
    if address.version == 6 and address not in _GLOBAL_V6:
        return False
    special = address.is_multicast or address.is_reserved or address.is_private or not address.is_global
    return not special and not any(address in net for net in _SPECIAL if net.version == address.version)


@dataclass(frozen=True)
class FetchRules:
    """Whom to ask, and for how much: `hosts` are NAME (on the usual ports) or NAME:PORT, in small letters.

    No hosts: nothing is fetched. `allowed` decides about addresses; only tests have reason to change it.
    """

    hosts: frozenset[str] = frozenset()
    max_bytes: int = 50 * 2**20
    seconds: float = 10.0
    allowed: Callable[[Address], bool] = is_public
    trust: ssl.SSLContext | None = None
    accept: str = "image/png, image/jpeg, image/webp"


@dataclass(frozen=True)
class _Target:
    secure: bool
    host: str
    port: int
    path: str


async def fetch(url: str, rules: FetchRules) -> bytes:
    """The content behind `url`; FetchError says why it cannot be had. What it is, is not looked at."""
    if url[:5].lower() == "data:":
        return await asyncio.to_thread(from_data_url, url, rules.max_bytes)
    target = _target(url, rules)
    try:
        async with asyncio.timeout(rules.seconds):
            addresses = await _look_up(target, rules)
            return await _get(target, addresses, rules)
    except TimeoutError:
        raise FetchError(f"the address did not answer in full within {rules.seconds:g} s; upload the picture") from None
    except (OSError, UnicodeError, h11.ProtocolError):
        raise FetchError("the address gave no proper answer; upload the picture") from None


def from_data_url(url: str | memoryview, max_bytes: int) -> bytes:
    """The content of a `data:` URL in base64; FetchError `invalid_image` for any other, `image_too_large` if long.

    Decoded a piece at a time, so that in a thread it keeps nobody waiting.
    """
    head = _DATA.match(url[:200] if isinstance(url, str) else str(url[:200], "latin-1"))
    if head is None:
        raise FetchError("the data: URL is none with base64: data:image/png;base64,...", "invalid_image")
    if len(url) - head.end() > 4 * (max_bytes // 3 + 1):
        raise FetchError(f"the picture is too large; send at most {told_bytes(max_bytes)}", "image_too_large")
    content, whole = bytearray(), True
    try:
        for start in range(head.end(), len(url), _PIECE):
            piece = base64.b64decode(url[start : start + _PIECE], validate=True)
            if not whole:
                raise ValueError("padding before the end")
            whole = len(piece) == _PIECE // 4 * 3
            content += piece
    except (binascii.Error, ValueError):
        raise FetchError("the data: URL is not in base64; send it whole, without spaces", "invalid_image") from None
    return cast(bytes, content)  # not copied once more: nobody needs more than its bytes


def checked_host(given: str) -> str:
    """NAME or NAME:PORT as `FetchRules.hosts` has it; ValueError for anything else."""
    name, colon, port = given.lower().partition(":")
    right_port = not colon or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
    if len(name) > 253 or _NAME.fullmatch(name) is None or not right_port:
        raise ValueError(f"{given!r} is no host; use a name such as images.example.com, or NAME:PORT")
    return f"{name}:{int(port)}" if colon else name


def _target(url: str, rules: FetchRules) -> _Target:
    """Where `url` leads. What is checked here is what is dialled; what can be read in two ways fails."""
    if not rules.hosts:
        raise FetchError("this server fetches no addresses; upload the picture, or send it as a data: URL")
    if _PRINTABLE.fullmatch(url) is None or "\\" in url:
        raise FetchError("the address has characters that no URL has, or is too long")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FetchError("the address is no URL") from None
    if parts.scheme not in _PORTS or "@" in parts.netloc or not parts.hostname:
        raise FetchError("the address is not http://HOST/... or https://HOST/... without a user name")
    host = parts.hostname
    usual = port is None or port == _PORTS[parts.scheme]
    if not ((usual and host in rules.hosts) or f"{host}:{port or _PORTS[parts.scheme]}" in rules.hosts):
        raise FetchError("this server does not fetch from that host; upload the picture, or send it as a data: URL")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(parts.scheme == "https", host, port or _PORTS[parts.scheme], path)


async def _look_up(target: _Target, rules: FetchRules) -> list[str]:
    """The addresses to dial. One bad address among those of a name makes all of them bad."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(place[4][0]) for place in found]
    if not addresses or not all(rules.allowed(ipaddress.ip_address(text)) for text in addresses):
        raise FetchError("that host is not on the open internet; upload the picture")
    return addresses


async def _connect(
    target: _Target, addresses: Sequence[str], rules: FetchRules
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the first of `addresses` that answers; OSError of the last if none does."""
    context = (rules.trust or ssl.create_default_context()) if target.secure else None
    name = target.host if target.secure else None
    failure = OSError("no address")
    for address in addresses:
        try:
            return await asyncio.open_connection(address, target.port, ssl=context, server_hostname=name)
        except OSError as error:
            failure = error
    raise failure


async def _get(target: _Target, addresses: Sequence[str], rules: FetchRules) -> bytes:
    reader, writer = await _connect(target, addresses, rules)
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADERS)
        usual = target.port == _PORTS["https" if target.secure else "http"]
        ask = h11.Request(
            method="GET",
            target=target.path,
            headers=[
                ("Host", target.host if usual else f"{target.host}:{target.port}"),
                ("Accept", rules.accept),
                ("Accept-Encoding", "identity"),
                ("Connection", "close"),
            ],
        )
        writer.write((connection.send(ask) or b"") + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        return await _body(connection, reader, rules.max_bytes)
    finally:
        writer.transport.abort()  # no goodbye: who does not answer in time could draw that out, too
        with suppress(OSError):
            await writer.wait_closed()


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, most: int) -> bytes:
    content = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(2**16))
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                raise FetchError(f"the address answered with status {event.status_code}; upload the picture")
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > most:
                raise FetchError(f"the picture is too large; at most {told_bytes(most)} are read", "image_too_large")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(content)
        elif not isinstance(event, h11.InformationalResponse):  # the connection ended too soon
            raise FetchError("the address gave no whole answer; upload the picture")
