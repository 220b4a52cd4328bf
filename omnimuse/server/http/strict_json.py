"""Strict JSON from strangers, read in a time that grows with its length and with nothing else.

`server/http/bodies.py` gives a body here piece by piece; what is not worth reading is refused while it comes. `parse`
may run in a thread: none of its calls into C works on more than MAX_JSON bytes, so the event loop gets its turns.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterator
from typing import Any, NoReturn

from omnimuse.core.amounts import told_bytes
from omnimuse.core.bounds import finite
from omnimuse.server.errors import ApiError, refusal

MAX_DIGITS = 400  # more than the largest float has
MAX_DEPTH = 32
MAX_MARKS = 50_000
"""Commas and brackets of a JSON body, inside strings too: bounds the values made from it, before any is made."""
MAX_JSON = 2 * 2**20
"""Bytes of a JSON body without the long pictures in it (data: URLs); two prompts of 32 000 characters always fit."""
LONG = 64 * 1024
"""Bytes of a data: URL from which on it is kept apart, and never becomes one long text."""
_PIECE = 2**20
_QUOTED, _LINKED = b'"data:', b"](data:"
"""How a data: URL begins that is a text by itself, and one that is the address of a picture in Markdown."""


class DataUrl(str):
    """A long data: URL, whose bytes are `content`.

    As text it is its beginning, which is longer than any text that is taken anywhere, and a digest of the whole.
    """

    content: memoryview

    @staticmethod
    def of(content: memoryview) -> DataUrl:
        """The URL in `content`."""
        url = DataUrl(f"{str(content[:LONG], 'latin-1')}... sha256 {hashlib.sha256(content).hexdigest()}")
        url.content = content
        return url


class Written(str):
    """Text with long data: URLs in it, `urls`, in their order; in the text each stands as `DataUrl` does."""

    urls: tuple[DataUrl, ...]

    @staticmethod
    def of(text: str, words: re.Pattern[str], found: dict[str, DataUrl]) -> Written:
        """`text` with the URLs in `found` in the place of their words."""
        written = Written(words.sub(lambda word: found[word[0]], text))
        written.urls = tuple(found[word] for word in words.findall(text))
        return written


class Draft:
    """A body while it comes."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._marks = 0

    def add(self, piece: bytes) -> None:
        """Take the next piece; ApiError 400 `invalid_json` once there are too many values to read."""
        self._marks += sum(map(piece.count, (b",", b"[", b"{")))
        if self._marks > MAX_MARKS:
            raise refusal("invalid_json", f"the body has more than {MAX_MARKS} commas and brackets; send fewer values")
        self.content += piece


def parse(content: bytearray) -> dict[str, Any]:
    """The object in `content`; long data: URLs in it are `DataUrl`s.

    ApiError 400 `invalid_json` for a name said twice, NaN or infinite numbers, more than MAX_DEPTH levels or no object;
    400 `invalid_value` for text that is no Unicode (half a surrogate pair); 413 for more than MAX_JSON bytes of text.
    """
    text, urls, words = _lift(content)
    value = _parse(text)
    if not isinstance(value, dict):
        raise refusal("invalid_json", f"the body is a JSON {_named(value)}; send an object: {{...}}")
    return _checked(value, urls, words)


def _lift(content: bytearray) -> tuple[bytes, dict[str, DataUrl], re.Pattern[str] | None]:
    """`content` with a word in place of each long data: URL, the URLs by these words, and, if there are any, what
    words look like.

    What is replaced has neither quotes nor backslashes and stands between two quotes, or in a string's Markdown. So it
    is either inside of one string or no JSON at all, and so is its word, which nobody can guess.
    """
    whole, kept, urls = memoryview(content), bytearray(), dict[str, DataUrl]()
    quoted, linked, quotes, ends, slashes = (_Marks(content, mark) for mark in (_QUOTED, _LINKED, b'"', b")", b"\\"))
    secret, done, at = secrets.token_hex(16), 0, 0
    while (start := min(quoted.after(at), linked.after(at))) < len(content):
        in_text = start == linked.after(at)
        begin = start + (len(_LINKED) if in_text else len(_QUOTED)) - len(b"data:")
        end = ends.after(begin) if in_text else quotes.after(begin)
        if end == len(content) or quotes.after(begin) < end:
            at = begin
        else:
            at = end
            if end - begin > LONG and slashes.after(max(0, start - 1)) >= end:
                word = f"url-{secret}-{len(urls)}."
                urls[word] = DataUrl.of(whole[begin:end])
                kept += whole[done:begin]
                kept += word.encode()
                done = end
        _check_length(len(kept) + at - done)
    _check_length(len(kept) + len(content) - done)
    words = re.compile(rf"url-{secret}-\d+\.") if urls else None
    return bytes(kept + whole[done:]), urls, words


class _Marks:
    """Where a mark stands next in the content; asked about places that never go back, it looks at each byte once."""

    def __init__(self, content: bytearray, mark: bytes) -> None:
        self._content, self._mark, self._next = content, mark, -1

    def after(self, at: int) -> int:
        """The first place at or behind `at`; the length of the content if there is none."""
        if self._next < at:
            found = _find(self._content, self._mark, at)
            self._next = len(self._content) if found < 0 else found
        return self._next


def _find(content: bytearray, what: bytes, start: int, end: int | None = None) -> int:
    """As `content.find(what, start, end)`, a piece at a time."""
    end = len(content) if end is None else end
    for begin in range(start, end, _PIECE):
        if (found := content.find(what, begin, min(end, begin + _PIECE + len(what) - 1))) >= 0:
            return found
    return -1


def _check_length(length: int) -> None:
    if length > MAX_JSON:
        message = f"the body has more than {told_bytes(MAX_JSON)} of JSON beside pictures in data: URLs; send less"
        raise refusal("request_too_large", message)


def _parse(content: bytes) -> Any:
    try:
        text = content.decode("utf-8-sig")
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )
    except UnicodeDecodeError as error:
        raise refusal("invalid_json", f"the body is not UTF-8: byte {error.start} cannot be read") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refusal("invalid_json", f"the body is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _too_deep() from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            twice = shortened(name)
            raise refusal("invalid_json", f"the body names {twice!r} twice in one object; say it once", twice)
        found[name] = value
    return found


def _no_number(word: str) -> NoReturn:
    raise refusal("invalid_json", f"the body has the number {word}, which JSON does not know; leave it out")


def _whole(digits: str) -> int:
    _check_digits(digits)  # reading them takes their square
    value = int(digits)
    if not finite(value):
        raise _too_large(digits)
    return value


def _too_large(digits: str) -> ApiError:
    return refusal("invalid_json", f"the number {digits[:40]} is too large; use one below 1.8e308")


def _check_digits(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise refusal("invalid_json", f"the body has a number with too many digits; write at most {MAX_DIGITS}")


def _finite(digits: str) -> float:
    _check_digits(digits)
    value = float(digits)
    if not math.isfinite(value):
        raise _too_large(digits)
    return value


def _checked(top: dict[str, Any], urls: dict[str, DataUrl], words: re.Pattern[str] | None) -> dict[str, Any]:
    """`top` with its URLs; refuses deep levels and broken text, without recursion. `param` is the outermost field.

    Only iterators wait: no object is made for each value, which would set the collector of garbage to work.
    """
    param = ""
    open_levels = [_parts(top)]
    while open_levels:
        found = next(open_levels[-1], None)
        if found is None:
            open_levels.pop()
            continue
        holder, key, value = found
        if len(open_levels) == 1:
            param = str(key)
        if isinstance(key, str):
            _check_text(key, param)
        if isinstance(value, str):
            _check_text(value, param)
            if value in urls:
                holder[key] = urls[value]
            elif words is not None and words.search(value):
                holder[key] = Written.of(value, words, urls)
        elif isinstance(value, dict | list):
            if len(open_levels) >= MAX_DEPTH:
                raise _too_deep()
            open_levels.append(_parts(value))
    return top


def _parts(holder: dict[str, Any] | list[Any]) -> Iterator[tuple[Any, str | int, Any]]:
    """The object or list itself, a name or position in it, and what is there."""
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        yield holder, key, value


def _check_text(text: str, param: str) -> None:
    try:
        if not text.isascii():
            text.encode("utf-8")
    except UnicodeEncodeError:
        message = "the text has half a surrogate pair; send Unicode"
        raise refusal("invalid_value", message, shortened(param)) from None


def _too_deep() -> ApiError:
    return refusal("invalid_json", f"the body is nested too deeply; at most {MAX_DEPTH} levels are read")


def shortened(name: str) -> str:
    """The beginning of a name that a client chose, in ASCII, to be shown."""
    return name[:100].encode("ascii", "backslashreplace").decode()


def _named(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
