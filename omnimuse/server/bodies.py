"""Request bodies: strict JSON objects and multipart forms, as plain values.

Called by the routes, below the edge, which caps the length and the patience of what is read. Nothing here knows what a
field means. What a client claims about a file (name, type) is never used: uploads are known by their first bytes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from omnimuse.server.errors import ApiError, refusal

MAX_DEPTH = 32
MAX_MARKS = 100_000
"""Commas and brackets of a JSON body, inside strings too: bounds the values made from it, before any is made."""
MAX_PARTS = 64
MAX_TEXT = 256 * 1024
"""Bytes of one text field of a form: a prompt of 32 000 characters always fits."""
_MAGIC = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"))
_NAME = re.compile(r"([^\[\]]{1,100})((?:\[[^\[\]]{0,100}\]){0,4})")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Upload:
    """A file of a form. `kind` is "PNG", "JPEG" or "WEBP" by its first bytes, "" for everything else."""

    content: bytes = field(repr=False)
    kind: str


Form = tuple[dict[str, Any], dict[str, list[Upload]]]
"""Text fields (`lora[path]` as nested dicts, `tags[]` as lists; every value a string) and files by field name."""


async def read_any(request: Request) -> Form:
    """The fields and files of a JSON or multipart body; ApiError 415 for another type."""
    kind = _content_type(request)
    if kind == "multipart/form-data":
        return await read_form(request)
    if kind == "application/json":
        return await read_json(request), {}
    raise _wrong_type(kind, "application/json or multipart/form-data")


# -- JSON ----------------------------------------------------------------------------------------------------


async def read_json(request: Request) -> dict[str, Any]:
    """The body as one JSON object in UTF-8.

    ApiError 415 for another content type; 400 `invalid_json` for a name said twice, NaN or infinite numbers, more than
    MAX_DEPTH levels or no object; 400 `invalid_value` for text that is no Unicode (half a surrogate pair).
    """
    if (kind := _content_type(request)) != "application/json":
        raise _wrong_type(kind, "application/json")
    content = await request.body()
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise refusal("invalid_json", f"the body has more than {MAX_MARKS} commas and brackets; send fewer values")
    value = _parse(content)
    if not isinstance(value, dict):
        raise refusal("invalid_json", f"the body is a JSON {_named(value)}; send an object: {{...}}")
    _check_values(value)
    return value


def _parse(content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise refusal("invalid_json", f"the body is not UTF-8: byte {error.start} cannot be read") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refusal("invalid_json", f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # a whole number of more than 4300 digits
        raise refusal("invalid_json", "the body has a number with too many digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise refusal("invalid_json", f"the body names {twice[:100]!r} twice in one object; say it once", twice[:100])
    return found


def _no_number(word: str) -> NoReturn:
    raise refusal("invalid_json", f"the body has the number {word}, which JSON does not know; leave it out")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise refusal("invalid_json", f"the number {digits[:40]} is too large; use one below 1.8e308")
    return value


def _check_values(top: dict[str, Any]) -> None:
    """Refuse deep levels and broken text, without recursion. `param` is the field of the outermost object."""
    waiting: list[tuple[str, int, Any]] = [(name, 2, part) for name, value in top.items() for part in (name, value)]
    while waiting:
        param, level, value = waiting.pop()
        if isinstance(value, str):
            if _SURROGATE.search(value):
                raise refusal("invalid_value", "the text has half a surrogate pair; send Unicode", _shown(param))
        elif isinstance(value, dict | list):
            if level > MAX_DEPTH:
                raise _too_deep()
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(param, level + 1, part) for part in parts]


def _too_deep() -> ApiError:
    return refusal("invalid_json", f"the body is nested too deeply; at most {MAX_DEPTH} levels are read")


def _shown(name: str) -> str:
    return name[:100].encode("ascii", "backslashreplace").decode()


def _named(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


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
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise refusal("invalid_form", "the multipart body cannot be read; check its boundaries and headers") from None
    if not parts.ended:
        raise refusal("invalid_form", "the multipart body ends before its last boundary; send it whole")
    return parts.fields, parts.files


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
            message = f"{self._name} is text of more than {MAX_TEXT} bytes; shorten it"
            raise refusal("invalid_value", message, self._name)

    def _end_part(self) -> None:
        base, keys = _split(self._name)
        if self._is_file:
            if keys not in ((), ("",)):
                raise refusal("invalid_form", f"{self._name} cannot be a file; name it {base} or {base}[]", self._name)
            content = bytes(self._data)
            self.files.setdefault(base, []).append(Upload(content, _sniff(content)))
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


def _sniff(content: bytes) -> str:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC if content.startswith(magic)), "")


# -- content types -------------------------------------------------------------------------------------------


def _content_type(request: Request) -> str:
    """The media type alone, in small letters; "" when absent."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _wrong_type(kind: str, allowed: str) -> ApiError:
    what = f"Content-Type {_shown(kind)!r} is not read here" if kind else "the body has no Content-Type"
    return refusal("unsupported_media_type", f"{what}; send {allowed}")
