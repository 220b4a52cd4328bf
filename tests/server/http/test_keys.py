"""API keys: who is let in, how the file may look, and how it changes under a running server."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError
from omnimuse.server.errors import ApiError, body
from omnimuse.server.http.keys import GRACE, Keys
from tests.server.asgi import call, scope
from tests.server.picture_server import service_in

ONE, TWO = "k" * 32, "0123456789abcdef"


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


def refused(keys: Keys, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.tenant(header)
    return caught.value


def test_without_a_file_everybody_comes_in_whatever_they_say() -> None:
    keys = Keys.load(None)
    assert not keys.required
    assert keys.tenant(None) == keys.tenant("Bearer sk-anything") == keys.tenant("nonsense") == ""


def test_each_key_is_a_tenant_with_its_name_or_one_made_from_its_hash(tmp_path: Path) -> None:
    keys = Keys.load(key_file(tmp_path, f"# ours\n\nalice:{ONE}\n  {TWO}  \r\nalice:{ONE}new\n"))
    assert keys.required
    assert keys.tenant(f"Bearer {ONE}") == keys.tenant(f"bearer  {ONE}new ") == "alice"
    unnamed = keys.tenant(f"Bearer {TWO}")
    assert unnamed.startswith("key-") and TWO not in unnamed
    assert unnamed == Keys.load(tmp_path / "keys").tenant(f"Bearer {TWO}")


def test_a_byte_order_mark_belongs_to_no_key(tmp_path: Path) -> None:
    keys = Keys.load(key_file(tmp_path, f"\ufeffalice:{ONE}\n"))
    assert keys.tenant(f"Bearer {ONE}") == "alice"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {ONE}", ONE, f"Bearer {ONE[:-1]}", f"Bearer {ONE}x", "Bearer \xff", "\x00"],
)
def test_no_key_and_a_wrong_key_are_401_and_not_worth_a_retry(tmp_path: Path, header: str | None) -> None:
    error = refused(Keys.load(key_file(tmp_path, ONE)), header)
    assert (error.status, error.type, error.code) == (401, "authentication_error", "invalid_api_key")
    assert error.headers == {"x-should-retry": "false", "www-authenticate": "Bearer"}
    assert ONE[:-1] not in str(body(error))


def test_a_key_with_a_colon_is_whole_unless_what_stands_before_it_is_a_name(tmp_path: Path) -> None:
    keys = Keys.load(key_file(tmp_path, f"a/b:{ONE}"))
    assert keys.tenant(f"Bearer a/b:{ONE}").startswith("key-")
    refused(keys, f"Bearer {ONE}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "short", "name:short", f"{ONE} {TWO}"])
def test_a_file_that_protects_nothing_is_refused_without_printing_keys(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="openssl rand") as caught:
        Keys.load(key_file(tmp_path, text))
    assert ONE not in str(caught.value) and "short" not in str(caught.value).replace("shorter", "")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.load(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.load(tmp_path / "binary")


def test_keys_do_not_stay_in_memory_in_the_clear(tmp_path: Path) -> None:
    assert ONE not in repr(vars(Keys.load(key_file(tmp_path, ONE))))


def test_a_file_others_can_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key_file(tmp_path, ONE).chmod(0o644)
    with caplog.at_level(logging.WARNING):
        Keys.load(tmp_path / "keys")
    assert "chmod 600" in caplog.text


def test_a_changed_file_is_read_again_within_a_second(tmp_path: Path) -> None:
    clock, path = Clock(), key_file(tmp_path, ONE)
    keys = Keys.load(path, clock)
    replaced = tmp_path / "new"
    replaced.write_text(TWO)
    os.replace(replaced, path)
    assert keys.tenant(f"Bearer {ONE}")
    clock.now += 1.1
    assert keys.tenant(f"Bearer {TWO}")
    refused(keys, f"Bearer {ONE}")


def test_a_key_that_is_gone_is_gone_although_another_line_is_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, path = Clock(), key_file(tmp_path, f"alice:{ONE}\nbob:{TWO}\n")
    keys = Keys.load(path, clock)
    path.write_text(f"bob:{TWO}\ncarol:short\n")
    clock.now += 1.1
    with caplog.at_level(logging.ERROR):
        refused(keys, f"Bearer {ONE}")
    assert keys.tenant(f"Bearer {TWO}") == "bob"
    assert "line 2" in caplog.text and "short" not in caplog.text.replace("shorter", "") and "1 lines" in keys.trouble
    path.write_text(f"bob:{TWO}\n#\n")
    clock.now += 1.1
    assert keys.trouble == "" and keys.tenant(f"Bearer {TWO}") == "bob"


@pytest.mark.parametrize("text", ["", "short", None, "a folder"])
def test_where_the_file_is_gone_or_has_no_key_nobody_comes_in_after_a_short_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    clock, path = Clock(), key_file(tmp_path, ONE)
    keys = Keys.load(path, clock)
    path.unlink()
    if text == "a folder":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    clock.now += 1.1
    with caplog.at_level(logging.ERROR):
        assert keys.tenant(f"Bearer {ONE}"), "who writes a file anew needs a moment"
    assert "nobody comes in" in caplog.text and ONE not in caplog.text
    assert "cannot be read" in keys.trouble
    clock.now += GRACE
    for header in (f"Bearer {ONE}", None, "Bearer wrong"):
        error = refused(keys, header)
        assert (error.status, error.code) == (503, "keys_unreadable") and "retry-after" in error.headers
    if path.is_dir():
        path.rmdir()
    key_file(tmp_path, TWO)
    clock.now += 1.1
    assert keys.trouble == ""
    assert keys.tenant(f"Bearer {TWO}")
    refused(keys, f"Bearer {ONE}")


def test_a_file_that_keeps_its_stamp_while_it_cannot_be_read_is_read_when_it_can_again(tmp_path: Path) -> None:
    clock, path = Clock(), key_file(tmp_path, ONE)
    keys = Keys.load(path, clock)
    path.rename(tmp_path / "aside")
    clock.now += 1.1
    assert keys.trouble
    (tmp_path / "aside").rename(path)
    clock.now += 1.1
    assert not keys.trouble and keys.tenant(f"Bearer {ONE}")


def test_readiness_and_a_measurement_say_that_the_keys_are_not_those_of_the_file(tmp_path: Path) -> None:
    path = key_file(tmp_path, ONE)

    async def main() -> None:
        async with service_in(tmp_path / "data", lambda options: replace(options, key_file=path)) as (app, _):
            assert (await call(app, scope(path="/readyz"))).status == 200
            path.write_text("short")
            await asyncio.sleep(1.1)
            answer = await call(app, scope(path="/readyz"))
            assert answer.status == 503 and b"API keys" in answer.content
            measured = await call(app, scope(path="/metrics", headers={"authorization": f"Bearer {ONE}"}))
            assert b"omnimuse_api_keys_stale 1.0" in measured.content

    asyncio.run(main())
