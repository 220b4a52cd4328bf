"""Pages of other sites: those that the operator named may call from a browser, and no others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.server.options import Reach, ServeOptions
from tests.server.asgi import Answer, call, scope
from tests.server.picture_server import service_in

OURS, THEIRS = "https://art.example:8443", "https://evil.example"
KEY = "k" * 32


def ask(folder: Path, reach: Reach, *asked: dict[str, object], key_file: Path | None = None) -> list[Answer]:
    """What a server that is reached so answers to each of `asked` (arguments of `scope`)."""

    async def main() -> list[Answer]:
        change = lambda options: replace(options, reach=reach, key_file=key_file)  # noqa: E731
        async with service_in(folder, change) as (app, _):
            return [await call(app, scope(**one)) for one in asked]  # type: ignore[arg-type]

    return asyncio.run(main())


def question(origin: str, path: str = "/v1/images/generations", host: str = "localhost") -> dict[str, object]:
    """What a browser asks before it lets a page send JSON with a key."""
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-own-header"}
    return {"method": "OPTIONS", "path": path, "headers": {"origin": origin, "host": host, **wanted}}


def test_a_page_of_a_named_site_may_ask_call_and_read(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    cross = {"origin": OURS, "sec-fetch-site": "cross-site", "content-type": "application/json"}
    with_key = cross | {"authorization": f"Bearer {KEY}"}
    asked, refused, read, without_key = ask(
        tmp_path / "data",
        Reach(origins=(OURS,)),
        question(OURS),
        {"method": "POST", "path": "/v1/images/generations", "headers": with_key},
        {"path": "/v1/models", "headers": with_key},
        {"path": "/v1/models", "headers": cross},
        key_file=tmp_path / "keys",
    )
    assert (asked.status, asked.content) == (204, b"")  # a browser's question has no key
    assert asked.headers["access-control-allow-origin"] == OURS and asked.headers["vary"] == "origin"
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-headers"] == "authorization, x-own-header"
    assert refused.error["code"] == "invalid_json"  # it came in, and what is wrong with it can be read
    assert read.status == 200 and without_key.status == 401
    for answer in (refused, read, without_key):
        assert answer.headers["access-control-allow-origin"] == OURS
        assert "retry-after" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origins", [(), (OURS,)])
@pytest.mark.parametrize("origin", [THEIRS, "null", OURS + ".evil.example", OURS.replace("https", "http")])
def test_a_page_of_another_site_is_told_nothing_and_changes_nothing(
    tmp_path: Path, origins: tuple[str, ...], origin: str
) -> None:
    cross = {"origin": origin, "sec-fetch-site": "cross-site", "content-type": "application/json"}
    asked, posted, read = ask(
        tmp_path,
        Reach(origins=origins),
        question(origin),
        {"method": "POST", "path": "/v1/images/generations", "headers": cross},
        {"path": "/v1/models", "headers": cross},
    )
    assert asked.status == 405 and posted.error["code"] == "origin_not_allowed" and read.status == 200
    assert not [name for answer in (asked, posted, read) for name in answer.headers if name.startswith("access-")]


def test_a_question_under_a_foreign_name_is_refused_as_everything_is(tmp_path: Path) -> None:
    [answer] = ask(tmp_path, Reach(origins=(OURS,)), question(OURS, host="evil.example"))
    assert answer.error["code"] == "host_not_allowed"


def test_every_site_may_be_let_in_where_there_are_keys_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api-key-file"):
        ServeOptions(tmp_path, "m", Reach(origins=("*",)))
    (tmp_path / "keys").write_text(KEY)
    (tmp_path / "keys").chmod(0o600)
    [answer] = ask(tmp_path / "data", Reach(origins=("*",)), question(THEIRS), key_file=tmp_path / "keys")
    assert answer.headers["access-control-allow-origin"] == THEIRS


@pytest.mark.parametrize("wrong", ["art.example", "https://art.example/path", "ftp://art.example", "https://a b"])
def test_what_is_no_origin_is_refused_at_the_start(wrong: str) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        Reach(origins=(wrong,))
