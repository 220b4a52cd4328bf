"""What the server says of requests and jobs: for people and for collectors, and never what a client wants it to say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.log import Entry, JsonLines, check_level, level, set_level, start_logging
from omnimuse.server.routes import health
from tests.server.asgi import call, scope
from tests.server.picture_server import service_in
from tests.server.video_rig import rig

KEY = "k" * 32


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The loggers of this process as they were."""
    loggers = [logging.getLogger(), logging.getLogger("omnimuse")]
    before = [logger.level for logger in loggers]
    yield
    for logger, was in zip(loggers, before, strict=True):
        logger.setLevel(was)


def entries(caplog: pytest.LogCaptureFixture) -> list[Entry]:
    return [record.entry for record in caplog.records if isinstance(vars(record).get("entry"), Entry)]  # type: ignore[attr-defined]


def draw(folder: Path, body: bytes, path: str = "/v1/images/generations") -> None:
    async def main() -> None:
        async with service_in(folder) as (app, service):
            asked = scope("POST", path, {"content-type": "application/json", "x-request-id": "mine"})
            answer = await call(app, asked, [body])
            if job := answer.headers.get("location", "").rpartition("/")[2]:
                while not service.jobs.current(await service.jobs.get("", job)).ended:  # type: ignore[arg-type]
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_request_has_a_line_when_it_is_accepted_one_when_it_ends_and_one_for_its_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_level("info")
    draw(tmp_path, b'{"prompt": "a ring", "num_inference_steps": 3, "n": 2}')
    told = entries(caplog)
    assert [(entry.what, entry.id, entry.event) for entry in told] == [
        ("request", "mine", "accepted"), ("request", "mine", "completed"), ("request", "mine", "answered"),
    ]  # fmt: skip
    assert told[0].more | {"error": ""} == {"task": "text-to-image", "steps": 3, "outputs": 2, "error": ""}
    assert told[1].seconds is not None and told[2].seconds is not None and told[2].more["status"] == 200


def test_a_refused_request_is_told_with_its_code_and_its_field_and_not_with_what_was_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_level("info")
    draw(tmp_path, b'{"prompt": "a secret", "size": "nosize"}')
    [told] = entries(caplog)
    assert told.event == "answered" and told.more["status"] == 400
    assert (told.more["error"], told.more["param"]) == ("invalid_value", "size")
    assert "secret" not in caplog.text and "nosize" not in caplog.text


def test_a_job_has_a_line_when_it_is_accepted_and_one_when_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_level("info")
    draw(tmp_path, b'{"prompt": "a ring", "background": true}')
    told = [entry for entry in entries(caplog) if entry.what == "job"]
    assert [entry.event for entry in told] == ["accepted", "completed"]
    assert told[0].id == told[1].id and told[1].seconds is not None and told[1].more["task"] == "text-to-image"


def test_a_job_that_fails_is_cancelled_or_waits_for_the_next_start_is_told_with_its_tenant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_level("info")

    async def main() -> None:
        async with rig(tmp_path) as found:
            found.workers.fail["bad"] = ModelError("no")
            await found.ended(await found.submit("a bad hill", tenant="alice"))
            found.workers.pace = 5.0
            running = await found.submit(tenant="bob")
            waiting = await found.submit(tenant="carol")
            await found.jobs.cancel("carol", waiting.id)
            while found.jobs.current(running).state == "queued":
                running = await found.jobs.get("bob", running.id) or running
                await asyncio.sleep(0.01)

    asyncio.run(main())
    told = [(entry.tenant, entry.event, entry.more.get("error", "")) for entry in entries(caplog)]
    assert told == [
        ("alice", "accepted", ""), ("alice", "failed", "model_error"),
        ("bob", "accepted", ""), ("carol", "accepted", ""), ("carol", "cancelled", ""),
        ("bob", "put back", ""),
    ]  # fmt: skip


def test_probes_are_quiet_and_everything_else_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(*paths: str) -> None:
        async with service_in(tmp_path) as (app, _):
            for path in paths:
                await call(app, scope(path=path))

    paths = [path for operation in health.OPERATIONS for path in [operation.path] if path != "/version"]
    set_level("info")
    asyncio.run(ask(*paths, "/health", "/ping", "/v2/health/ready", "/v1/models"))
    assert [entry.more["path"] for entry in entries(caplog)] == ["/v1/models"]
    caplog.clear()
    set_level("debug")
    asyncio.run(ask(*paths))
    assert [entry.more["path"] for entry in entries(caplog)] == paths


def test_the_tenant_of_a_key_is_told_and_the_key_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_level("debug")
    (tmp_path / "keys").write_text(f"alice:{KEY}")
    (tmp_path / "keys").chmod(0o600)
    app = protect([], Rules(Keys.load(tmp_path / "keys")))
    asyncio.run(call(app, scope(path="/v1/models", headers={"authorization": f"Bearer {KEY}"})))
    assert [entry.tenant for entry in entries(caplog)] == ["alice"]
    assert KEY not in caplog.text


def written(*told: Entry, form: logging.Formatter) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger = logging.Logger("omnimuse.test")
    logger.addHandler(handler)
    for entry in told:
        entry.write(logger)
    return stream.getvalue().splitlines()


HOSTILE = Entry("request", "mine", "answered", "alice", 1.23456, {"path": "/v1\n2026 ERROR\u2028x", "status": 404})


def test_what_a_client_sends_makes_no_line_of_its_own() -> None:
    [line] = written(HOSTILE, form=logging.Formatter("%(message)s"))
    assert line == r"request mine answered after 1.235 s, tenant alice, path '/v1\n2026 ERROR\u2028x', status 404"


def test_json_has_one_object_a_line_with_every_field() -> None:
    [line] = written(HOSTILE, form=JsonLines())
    said = json.loads(line)
    fields = {"what": "request", "id": "mine", "event": "answered", "tenant": "alice", "seconds": 1.235, "status": 404}
    assert said.items() >= {"level": "info", "logger": "omnimuse.test", **fields}.items()
    assert said["path"] == HOSTILE.more["path"] and said["time"].endswith("+00:00")


def test_an_error_is_inside_its_object() -> None:
    try:
        raise ValueError("over\ntwo lines")
    except ValueError as error:
        trace = (type(error), error, error.__traceback__)
    line = JsonLines().format(logging.LogRecord("x", logging.ERROR, "x.py", 1, "it %s", ("failed",), trace))
    said = json.loads(line)
    assert said["message"] == "it failed" and "ValueError: over\ntwo lines" in said["error"] and "\n" not in line


def test_the_level_is_ours_and_libraries_never_say_more_than_info() -> None:
    set_level("debug")
    assert level() == "debug" and logging.getLogger().level == logging.INFO
    set_level("error")
    assert level() == "error" and logging.getLogger().level == logging.ERROR


def test_levels_and_forms_that_there_are_none_of_are_refused() -> None:
    with pytest.raises(ConfigError, match="use one of debug, info, warning, error"):
        check_level("loud")
    with pytest.raises(ConfigError, match="use text or json"):
        start_logging("info", "xml")
