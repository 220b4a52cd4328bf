"""Request bodies: JSON objects (`strict_json.py`) and multipart forms, as plain values.

Called by the routes, below the edge, which caps the length and the patience of what is read. Nothing here knows what a
field means. What a client claims about a file (name, type) is never used: uploads are known by their first bytes.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from omnimuse.core.amounts import told_bytes
from omnimuse.server.errors import ApiError, refusal
from omnimuse.server.http.strict_json import Draft, parse, shortened

MAX_PARTS = 64
MAX_TEXT = 256 * 1024
"""Bytes of one text field of a form: a prompt of 32 000 characters always fits."""
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"))
_NAME = re.compile(r"([^\[\]]{1,100})((?:\[[^\[\]]{0,100}\]){0,4})")
_AT_ONCE = 32 * 1024
"""Bytes of a body that are read in less time than a thread takes to begin."""
_SLICE = 16 * 1024
"""Bytes of a form that are read between two turns of the event loop."""


@dataclass(frozen=True)
class Upload:
    """A file of a form. `kind` is "PNG", "JPEG" or "WEBP" by its first bytes, "" for everything else."""

    content: bytes | bytearray = field(repr=False)
    kind: str


Form = tuple[dict[str, Any], dict[str, list[Upload]]]
"""Text fields (`lora[path]` as nested dicts, `tags[]` as lists; every value a string) and files by field name."""


MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"


async def read_any(request: Request) -> Form:
    """The fields and files of a JSON body or of a form of either kind; ApiError 415 for another type."""
    kind = _content_type(request)
    if kind == MULTIPART:
        return await read_form(request)
    if kind == URLENCODED:
        return await read_urlencoded(request), {}
    if kind == "application/json":
        return await read_json(request), {}
    raise _wrong_type(kind, f"application/json, {MULTIPART} or {URLENCODED}")


def is_form(request: Request) -> bool:
    """Whether the body is a form, in which numbers and flags are text."""
    return _content_type(request) in (MULTIPART, URLENCODED)


# -- JSON ----------------------------------------------------------------------------------------------------


async def read_json(request: Request) -> dict[str, Any]:
    """The body as one JSON object in UTF-8, as `strict_json.parse` reads it; ApiError 415 for another content type."""
    if (kind := _content_type(request)) != "application/json":
        raise _wrong_type(kind, "application/json")
    draft = Draft()
    async for chunk in request.stream():
        draft.add(chunk)
    return await parsed(draft)


async def parsed(draft: Draft) -> dict[str, Any]:
    """The object in a body that is there, as `strict_json.parse` reads it."""
    if len(draft.content) <= _AT_ONCE:
        return parse(draft.content)
    return await asyncio.to_thread(parse, draft.content)


# -- forms ---------------------------------------------------------------------------------------------------


async def read_form(request: Request) -> Form:
    """The fields and files of a multipart body. ApiError 415, or 400 `invalid_form` for a damaged one."""
    if (kind := _content_type(request)) != "multipart/form-data":
        raise _wrong_type(kind, "multipart/form-data")
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary")
    if not boundary:
        raise refusal("invalid_form", "the multipart body has no boundary in its Content-Type")
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for chunk in request.stream():
            for start in range(0, len(chunk), _SLICE):
                parser.write(chunk[start : start + _SLICE])
                await asyncio.sleep(0)
        parser.finalize()
    except FormParserError:
        raise refusal("invalid_form", "the multipart body cannot be read; check its boundaries and headers") from None
    if not parts.ended:
        raise refusal("invalid_form", "the multipart body ends before its last boundary; send it whole")
    return parts.fields, parts.files


async def read_urlencoded(request: Request) -> dict[str, Any]:
    """The fields of a form without files, as `read_form` gives them; ApiError 400 `invalid_form` for what is none."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
    return await asyncio.to_thread(_pairs, content)


def _pairs(content: bytearray) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARTS)
    except UnicodeDecodeError:
        raise refusal("invalid_form", "the form is not UTF-8 text in percent-encoding") from None
    except ValueError:
        raise refusal("invalid_form", f"the form has more than {MAX_PARTS} fields; send fewer") from None
    for name, value in pairs:
        if _NAME.fullmatch(name) is None:
            raise refusal("invalid_form", f"a field has the name {name[:100]!r}; use name, name[] or name[key]")
        if len(value) > MAX_TEXT and not value.startswith("data:"):
            raise refusal("invalid_value", f"{name} is text of more than {MAX_TEXT} characters; shorten it", name)
        base, keys = _split(name)
        _put(fields, (base, *keys), value, name)
    return fields


class _Parts:
    """What the parser has found so far; the parser calls the methods that `callbacks` names."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.files: dict[str, list[Upload]] = {}
        self.ended = False
        self._count = 0
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._is_file, self._data = "", False, bytearray()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > MAX_PARTS:
            raise refusal("invalid_form", f"the form has more than {MAX_PARTS} parts; send fewer")
        self._disposition, self._data = b"", bytearray()

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        self._name = _text(options.get(b"name", b""), "the name of a field")
        if _NAME.fullmatch(self._name) is None:
            raise refusal("invalid_form", f"a part has the name {self._name[:100]!r}; use name, name[] or name[key]")
        self._is_file = b"filename" in options

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > MAX_TEXT:
            message = f"{self._name} is text of more than {told_bytes(MAX_TEXT)}; shorten it"
            raise refusal("invalid_value", message, self._name)

    def _end_part(self) -> None:
        base, keys = _split(self._name)
        if self._is_file:
            if keys not in ((), ("",)):
                raise refusal("invalid_form", f"{self._name} cannot be a file; name it {base} or {base}[]", self._name)
            self.files.setdefault(base, []).append(Upload(self._data, _sniff(self._data)))
        else:
            _put(self.fields, (base, *keys), _text(self._data, self._name), self._name)

    def _end(self) -> None:
        self.ended = True


def _split(name: str) -> tuple[str, tuple[str, ...]]:
    """`a[b][]` -> ("a", ("b", "")); `name` has matched _NAME."""
    base, _, rest = name.partition("[")
    return base, tuple(rest[:-1].split("][")) if rest else ()


def _put(place: dict[str, Any], keys: tuple[str, ...], value: str, name: str) -> None:
    """Put `value` where `keys` lead; an empty key is "append", and `a[][b]` begins a new item when `b` repeats."""
    key, rest = keys[0], keys[1:]
    if not rest:
        if key in place:
            raise refusal("conflicting_parameters", f"{name} is given twice; send it once, or as {name}[]", name)
        place[key] = value
        return
    inner = place.setdefault(key, [] if rest[0] == "" else {})
    if rest[0] == "" and isinstance(inner, list):
        if len(rest) == 1:
            inner.append(value)
            return
        if not inner or not isinstance(inner[-1], dict) or (len(rest) == 2 and rest[1] in inner[-1]):
            inner.append({})
        _put(inner[-1], rest[1:], value, name)
    elif rest[0] != "" and isinstance(inner, dict):
        _put(inner, rest, value, name)
    else:
        raise refusal("conflicting_parameters", f"{name} is given in two shapes; use one of them", name)


def _text(data: bytes | bytearray, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise refusal("invalid_form", f"{name} is not UTF-8 text; send files with a filename") from None


def _sniff(content: bytes | bytearray) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC if content.startswith(magic)), "")


# -- content types -------------------------------------------------------------------------------------------


def _content_type(request: Request) -> str:
    """The media type alone, in small letters; "" when absent."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _wrong_type(kind: str, allowed: str) -> ApiError:
    what = f"Content-Type {shortened(kind)!r} is not read here" if kind else "the body has no Content-Type"
    return refusal("unsupported_media_type", f"{what}; send {allowed}")
