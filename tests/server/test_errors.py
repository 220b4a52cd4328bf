"""What clients are told: every code, every class of error, the rule of retries, and what must never be told."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

import omnimuse.server
from omnimuse.core import errors as core
from omnimuse.deploy.process import ended
from omnimuse.deploy.wire import of_ended
from omnimuse.server.errors import (
    CODES,
    MAX_MESSAGE,
    ApiError,
    DeadlineUnreachable,
    body,
    on_unexpected_error,
    refusal,
    scrub,
    to_api_error,
    to_json,
    tried,
)

TYPES = {
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
    "service_unavailable",
    "timeout_error",
}


def subclasses(kind: type[core.OmnimuseError]) -> set[type[core.OmnimuseError]]:
    below = set(kind.__subclasses__())
    return below.union(*(subclasses(one) for one in below))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (core.RequestError("height=7 is wrong", "height"), 400, "invalid_value"),
        (core.RequestCancelled("cancelled"), 409, "cancelled"),
        (core.DeadlineError("too late"), 504, "deadline_exceeded"),
        (DeadlineUnreachable("no time"), 503, "deadline_unreachable"),
        (core.CapacityError("full", 3.2), 429, "queue_full"),
        (core.AdaptersFullError("worn", 1.0), 429, "adapters_full"),
        (core.PoisonError("twice"), 500, "worker_crash"),
        (core.WorkerLostError("lost"), 503, "worker_lost"),
        (core.EngineDeadError("dead"), 503, "engine_dead"),
        (core.EngineClosedError("closed"), 503, "server_draining"),
        (core.ModelError("no files"), 500, "model_error"),
        (core.NumericalError("NaN"), 500, "numerical_error"),
        (core.StorageError("full disk"), 503, "storage_full"),
        (core.ConfigError("wrong"), 500, "internal_error"),
        (core.UnsupportedError("a mask"), 400, "unsupported_by_server"),
        (MemoryError(), 503, "insufficient_memory"),
        (HTTPException(404), 404, "not_found"),
        (HTTPException(405, headers={"Allow": "GET"}), 405, "method_not_allowed"),
        (ValueError("secret"), 500, "internal_error"),
    ],
)
def test_each_class_of_error_has_its_status_and_code(error: Exception, status: int, code: str) -> None:
    told = to_api_error(error)
    assert (told.status, told.code, told.type) == (status, code, CODES[code].type)


def test_every_class_of_the_error_tree_is_told_as_something_of_its_own() -> None:
    kinds = [kind for kind in subclasses(core.OmnimuseError) if kind.__module__ == core.__name__]
    internal = {kind for kind in kinds if to_api_error(kind("x")).code == "internal_error"}
    assert internal == {core.ConfigError}


def test_what_is_full_says_in_another_process_too_when_to_come_again() -> None:
    for kind in (core.CapacityError, core.AdaptersFullError):
        told = of_ended(ended("a", kind("full", 3.0)))
        assert type(told) is kind and told.retry_after == 3.0


def test_what_this_server_cannot_do_is_told_with_what_to_start_it_with_and_kept_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def draw() -> None:
        raise of_ended(ended("a", core.UnsupportedError("no mask at role 'self'; start with --attention sdpa")))

    told = asyncio.run(tried(draw(), "request a"))
    assert isinstance(told, ApiError) and told.headers == {"x-should-retry": "false"}
    assert told.message == "no mask at role 'self'; start with --attention sdpa"
    assert [line.message for line in caplog.records] == ["request a failed"]


def test_a_request_error_names_the_field_that_is_wrong() -> None:
    told = body(to_api_error(core.RequestError("height=7 is not a multiple of 16; use 16", "height")))
    assert told == {
        "error": {
            "message": "height=7 is not a multiple of 16; use 16",
            "type": "invalid_request_error",
            "param": "height",
            "code": "invalid_value",
        }
    }


@pytest.mark.parametrize(("code", "known"), CODES.items())
def test_each_code_tells_the_client_whether_to_try_again(code: str, known: object) -> None:
    del known
    error = refusal(code, "x", retry_after=7.1)
    if CODES[code].retry == "never":
        assert error.headers == {"x-should-retry": "false"}
    else:
        assert error.headers == {"retry-after": "8"}
        assert error.status in (429, 503)
    assert CODES[code].type in TYPES


@pytest.mark.parametrize(
    ("wait", "header"), [(0.0, "1"), (-3.0, "1"), (2.01, "3"), (500.0, "120"), (float("nan"), "5"), (None, "5")]
)
def test_retry_after_stays_between_1_and_120_seconds(wait: float | None, header: str) -> None:
    assert to_api_error(core.CapacityError("full", wait)).headers["retry-after"] == header


def test_what_no_wait_can_help_is_not_tried_again() -> None:
    assert to_api_error(DeadlineUnreachable("the work alone takes too long")).headers == {"x-should-retry": "false"}


def test_every_4xx_except_429_says_that_a_retry_is_waste_even_with_an_unlisted_code() -> None:
    assert ApiError(409, "invalid_request_error", "something_new", "x").headers["x-should-retry"] == "false"
    assert "x-should-retry" not in ApiError(429, "rate_limit_error", "something_new", "x").headers


def test_the_table_has_every_code_that_the_server_says_and_no_other() -> None:
    folder = Path(omnimuse.server.__file__).parent
    source = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    said = set(re.findall(r"(?<!\.)\brefusal\(\s*\"(\w+)\"", source))
    assert said <= set(CODES), f"not in the table: {said - set(CODES)}"
    silent = {code for code in CODES if source.count(f'"{code}"') < 2}
    assert not silent, f"in the table and nowhere else: {silent}"


@pytest.mark.parametrize(
    "leak",
    [
        "cannot open /home/user/models/x.safetensors",
        "[Errno 2] No such file: '/tmp/om-x1/sock'",
        "shared memory /dev/shm/psm_ab12 is gone",
        "ipc:///run/user/0/omnimuse-1/worker.sock does not answer",
        "<Tensor object at 0x7f3a9c0012e0>",
        "connect to 127.0.0.1:53211 failed",
        "nothing listens on port 53211",
        "C:\\Users\\me\\secret.txt",
        'oops\nTraceback (most recent call last):\n  File "/home/a.py", line 3, in f\nKeyError',
    ],
)
def test_client_text_has_no_path_address_port_or_traceback(leak: str) -> None:
    for bad in ("/home", "/tmp", "/dev/shm", "/run", "0x7f", "127.0.0.1", "53211", "Users", "Traceback", "line 3"):
        assert bad not in scrub(leak)


@pytest.mark.parametrize(
    "text",
    [
        "POST /v1/images/generations takes JSON",
        "send image/png, image/jpeg or image/webp",
        "size='0x0' is not allowed; use 128x128",
        "ratio 1/3 to 3/1, 24 frames/s",
        "the model is omnimuse/shapes",
        "a prompt in Ελληνικά, with / and // in it",
    ],
)
def test_plain_text_is_left_alone(text: str) -> None:
    assert scrub(text) == text


@given(st.text(), st.text(alphabet="abc./_-", min_size=1))
def test_no_path_survives_between_any_other_text(before: str, name: str) -> None:
    assert "/home/" not in scrub(f"{before} /home/{name} ")


@given(st.text(max_size=10_000))
def test_any_message_becomes_one_line_of_ascii_json(message: str) -> None:
    line = to_json(body(refusal("internal_error", message)))
    assert b"\n" not in line and len(json.loads(line)["error"]["message"]) <= MAX_MESSAGE


def test_scrubbing_takes_linear_time() -> None:
    for piece in ("/a", "a/", "1.", "0x", "C:\\", "/./.", "ipc:/"):
        assert len(scrub(piece * 100_000)) <= MAX_MESSAGE


def test_what_is_unexpected_is_logged_and_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    told: list[ApiError] = []

    async def work() -> None:
        raise KeyError("secret")

    async def answer(error: ApiError) -> None:
        told.append(error)

    with caplog.at_level(logging.ERROR):
        asyncio.run(on_unexpected_error(work, answer, "request abc"))
    assert [error.code for error in told] == ["internal_error"]
    assert "secret" not in str(body(told[0])) and "secret" in caplog.text and "abc" in caplog.text
