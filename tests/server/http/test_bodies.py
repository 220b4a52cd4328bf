"""Bodies: strict JSON, multipart forms as the official client writes them, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnimuse.server.errors import ApiError
from omnimuse.server.http.bodies import MAX_PARTS, MAX_TEXT, Form, read_any, read_form, read_json
from omnimuse.server.http.strict_json import MAX_DEPTH
from tests.server.asgi import request_with

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"


def parse(content: bytes, kind: str | None = "application/json", pieces: int = 997) -> Any:
    return asyncio.run(read_json(request_with(content, kind, pieces)))


def outcome(reading: Callable[[], Any]) -> int | str:
    """ "read", or the status of the refusal."""
    try:
        reading()
    except ApiError as error:
        return error.status
    return "read"


def refused(content: bytes, kind: str | None = "application/json") -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(content, kind)
    return caught.value


# -- JSON ----------------------------------------------------------------------------------------------------


def test_an_object_comes_back_as_it_was_written() -> None:
    value = {"prompt": "ein Käfer 🐞", "n": 1, "x": 0.5, "big": 2**70, "nested": [{"a": None, "b": True}]}
    assert parse(json.dumps(value).encode(), "Application/JSON; charset=utf-8") == value


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'prompt': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": [-1%s]}' % (b"0" * 350),
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b"[1]",
        b'"text"',
        b"null",
        b"7",
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"a": [' + b"0," * 200_000 + b"0]}",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_no_strict_json_object_is_refused(content: bytes) -> None:
    error = refused(content)
    assert (error.status, error.code) == (400, "invalid_json")


def test_a_byte_order_mark_in_front_of_json_is_left_out() -> None:
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/json", "", "a" * 500])
def test_another_content_type_is_415_and_says_what_is_read(kind: str | None) -> None:
    error = refused(b"{}", kind)
    assert (error.status, error.code) == (415, "unsupported_media_type") and "application/json" in error.message


def nested(levels: int) -> bytes:
    """An object of that many levels, itself the first."""
    return b'{"deep": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_nesting_is_capped_exactly() -> None:
    assert list(parse(nested(MAX_DEPTH))) == ["deep"]
    assert "nested" in refused(nested(MAX_DEPTH + 1)).message
    keyed = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)
    assert "nested" in refused(keyed).message


@pytest.mark.parametrize("text", [r'{"prompt": "a\ud800b"}', r'{"x": [{"\udfff": 1}]}', r'{"\udc00": 1}'])
def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_not(text: str) -> None:
    error = refused(text.encode())
    assert (error.status, error.code) == (400, "invalid_value") and error.param is not None
    assert error.param.isascii()
    assert parse(rb'{"prompt": "\ud83d\udc1e"}') == {"prompt": "🐞"}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(content: bytes) -> None:
    assert outcome(lambda: parse(content)) in ("read", 400)


# -- forms ---------------------------------------------------------------------------------------------------


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def read(*parts: bytes, end: bytes = b"--B--\r\n", pieces: int = 7) -> Form:
    request = request_with(b"".join(parts) + end, "multipart/form-data; boundary=B", pieces)
    return asyncio.run(read_form(request))


def form_error(*parts: bytes, end: bytes = b"--B--\r\n") -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(*parts, end=end, pieces=4096)
    return caught.value


@pytest.mark.parametrize("pieces", [1, 3, 7, 4096])
def test_a_form_is_the_same_however_it_is_cut(pieces: int) -> None:
    fields, files = read(
        part("prompt", "ein Käfer\r\nund --B mehr".encode()),
        part("n", b"2"),
        part("lora[path]", b"style"),
        part("lora[options][scale]", b"0.5"),
        part("tags[]", b"a"),
        part("tags[]", b"b"),
        part("loras[][name]", b"x"),
        part("loras[][scale]", b"1"),
        part("loras[][name]", b"y"),
        part("image[]", PNG, "../../etc/passwd"),
        part("image[]", b"\xff\xd8\xff\xe0", "upload"),
        part("mask", b"RIFF\0\0\0\0WEBPVP8 ", "a.png"),
        part("text", b"no picture", "a.png"),
        pieces=pieces,
    )
    assert fields == {
        "prompt": "ein Käfer\r\nund --B mehr",
        "n": "2",
        "lora": {"path": "style", "options": {"scale": "0.5"}},
        "tags": ["a", "b"],
        "loras": [{"name": "x", "scale": "1"}, {"name": "y"}],
    }
    kinds = {name: [upload.kind for upload in uploads] for name, uploads in files.items()}
    assert kinds == {"image": ["PNG", "JPEG"], "mask": ["WEBP"], "text": [""]}
    assert files["image"][0].content == PNG


def test_the_form_that_the_official_client_writes_is_read() -> None:
    import httpx2  # the transport of the openai client

    fields = {"prompt": "x", "tags[]": ["a", "b"], "lora[path]": "p", "stream": "true"}
    request = httpx2.Request("POST", "http://localhost/", data=fields, files={"image": ("upload", PNG)})
    got = asyncio.run(read_any(request_with(request.read(), request.headers["content-type"])))
    assert got[0] == {"prompt": "x", "tags": ["a", "b"], "lora": {"path": "p"}, "stream": "true"}
    assert got[1]["image"][0].kind == "PNG"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([part("n", b"1"), part("n", b"2")], "conflicting_parameters"),
        ([part("a", b"1"), part("a[b]", b"2")], "conflicting_parameters"),
        ([part("a[b]", b"1"), part("a[]", b"2")], "conflicting_parameters"),
        ([part("a[]", b"1"), part("a[b]", b"2")], "conflicting_parameters"),
        ([part("a[b]", b"1"), part("a[b]", b"2")], "conflicting_parameters"),
        ([part("", b"1")], "invalid_form"),
        ([part("[a]", b"1")], "invalid_form"),
        ([part("a]b[", b"1")], "invalid_form"),
        ([part("a" + "[b]" * 5, b"1")], "invalid_form"),
        ([part("a" * 101, b"1")], "invalid_form"),
        ([part("a", b"\xff\xfe")], "invalid_form"),
        ([part("a[b]", b"1", "file")], "invalid_form"),
        ([part("a", b"x" * (MAX_TEXT + 1))], "invalid_value"),
        ([part(f"f{i}", b"") for i in range(MAX_PARTS + 1)], "invalid_form"),
        ([b"--B\r\nContent-Type: text/plain\r\n\r\nx\r\n"], "invalid_form"),
        ([b"--B\r\n" + b"X-Y: z\r\n" * 50 + b"\r\nx\r\n"], "invalid_form"),
        ([b"--B\r\nX-Y: " + b"z" * 10_000 + b"\r\n\r\nx\r\n"], "invalid_form"),
        ([b"no form at all"], "invalid_form"),
    ],
    ids=range(18),
)
def test_a_bad_form_is_refused(parts: list[bytes], code: str) -> None:
    error = form_error(*parts)
    assert (error.status, error.code) == (400, code)


def test_the_largest_form_that_is_allowed_is_read() -> None:
    fields, _ = read(*[part(f"f{i}", b"") for i in range(MAX_PARTS - 1)], part("a", b"x" * MAX_TEXT), pieces=65536)
    assert len(fields) == MAX_PARTS and len(fields["a"]) == MAX_TEXT


@pytest.mark.parametrize("end", [b"", b"--B", b"--B\r\nContent-Disposition: form-data; na"])
def test_a_form_that_ends_early_is_refused(end: bytes) -> None:
    assert form_error(part("prompt", b"x"), end=end).code == "invalid_form"


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=" + "b" * 300])
def test_a_form_without_a_usable_boundary_is_refused(kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(read_form(request_with(b"x", kind)))
    assert caught.value.code == "invalid_form"


def test_any_body_is_read_by_its_type() -> None:
    assert asyncio.run(read_any(request_with(b'{"a": 1}', "application/json"))) == ({"a": 1}, {})
    form = request_with(b"a=1+%C3%A4&b[c]=2&d[]=3&d[]=&e=", "application/x-www-form-urlencoded; charset=UTF-8")
    assert asyncio.run(read_any(form)) == ({"a": "1 ä", "b": {"c": "2"}, "d": ["3", ""], "e": ""}, {})
    with pytest.raises(ApiError, match="multipart/form-data") as caught:
        asyncio.run(read_any(request_with(b"a: 1", "application/yaml")))
    assert caught.value.status == 415


@given(st.binary(max_size=300))
def test_any_bytes_are_a_form_or_a_refusal(content: bytes) -> None:
    assert outcome(lambda: read(b"--B\r\n" + content, pieces=4096)) in ("read", 400)
