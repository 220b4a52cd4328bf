"""Bodies that come together: bounded before they are read, for all and for each tenant, and let go in time."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.errors import ConfigError
from omnimuse.media.fetch import FetchRules
from omnimuse.server.errors import ApiError
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.budget import FREE, Bodies, Rates
from omnimuse.server.http.checks import Rules
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from omnimuse.server.http.strict_json import MAX_JSON
from omnimuse.server.http.uploads import Source, Uploads
from omnimuse.server.options import Guard, ServeOptions
from tests.server.asgi import Answer, Client, call, scope
from tests.server.picture_server import service_in

ALICE, BOB = "a" * 32, "b" * 32
JSON = "application/json"


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as caught:
        act()
    return caught.value.code


# -- bodies ----------------------------------------------------------------------------------------------------------


def test_all_bodies_and_those_of_a_tenant_are_bounded_and_what_is_let_go_is_free_again() -> None:
    bodies = Bodies(1_000_000, 600_000)
    one, two, three = bodies.lease("a"), bodies.lease("a"), bodies.lease("b")
    one.grow(400_000)
    assert code_of(lambda: two.grow(300_000)) == "queue_full", "the tenant has 600 000"
    three.grow(500_000)
    assert code_of(lambda: three.add(200_000)) == "queue_full", "there are 1 000 000"
    assert bodies.held == 900_000
    one.close()
    one.close()
    two.grow(300_000)
    three.close()
    two.close()
    assert bodies.held == 0


def test_a_small_body_is_always_read() -> None:
    lease = Bodies(0, 0).lease("a")
    lease.grow(FREE)
    assert code_of(lambda: lease.grow(FREE + 1)) == "queue_full"


def site(rules: Rules) -> Any:
    async def echo(request: Request) -> Response:
        return JSONResponse(len(json.dumps(await read_json(request))))

    return protect([Route("/v1/echo", echo, methods=["POST"])], rules)


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    (tmp_path / "keys").write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    (tmp_path / "keys").chmod(0o600)
    return Rules(Keys.load(tmp_path / "keys"), bodies=Bodies(1_000_000, 500_000), patience=0.5)


def head(key: str, **more: str) -> dict[str, str]:
    return {"content-type": JSON, "authorization": f"Bearer {key}", **more}


@pytest.mark.parametrize("declared", [True, False])
def test_one_tenant_s_unfinished_bodies_do_not_keep_another_out(rules: Rules, declared: bool) -> None:
    """Ten bodies of 200 000 bytes that never end, a harmless one of the same tenant, and one of another."""

    async def main() -> None:
        app = site(rules)
        length = {"content-length": "200001"} if declared else {"transfer-encoding": "chunked"}
        held = [Client([b" " * 200_000], unfinished=True) for _ in range(10)]
        asked = [
            asyncio.create_task(app(scope("POST", "/v1/echo", head(ALICE, **length)), client.receive, client.send))
            for client in held
        ]
        await asyncio.sleep(0.1)
        assert sum(client.answer.status == 429 for client in held) == 8, "two fit into the tenant's half"
        assert rules.bodies.held in (400_000, 400_002)
        content = json.dumps({"a": "x" * 300_000}).encode()
        size = {"content-length": str(len(content))}
        assert (await call(app, scope("POST", "/v1/echo", head(ALICE, **size)), [content])).status == 429
        assert (await call(app, scope("POST", "/v1/echo", head(BOB, **size)), [content])).status == 200
        for client in held:
            client.leave.set()
        await asyncio.gather(*asked)
        assert rules.bodies.held == 0

    asyncio.run(main())


def test_a_refused_body_says_when_to_come_again(rules: Rules) -> None:
    rules.bodies.lease("bob").grow(500_000)
    answer = asyncio.run(call(site(rules), scope("POST", "/v1/echo", head(BOB, **{"content-length": "100000"}))))
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (429, "queue_full", "1")


def test_a_picture_is_let_go_before_its_request_is_drawn(tmp_path: Path) -> None:
    """Requests wait for long; what they wait with is the decoded picture, not the body that it came in."""
    file = io.BytesIO()
    Image.effect_noise((600, 600), 90).convert("RGB").save(file, "PNG")
    content = (
        b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nslow\r\n'
        b'--B\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        + file.getvalue()
        + b"\r\n--B--\r\n"
    )
    assert len(content) > 4 * FREE
    guard = Guard(max_body=len(content), max_bodies=len(content))  # room for one

    async def main() -> None:
        async with service_in(tmp_path, lambda options: replace(options, guard=guard)) as (app, service):
            service.workers.pace = 30.0  # type: ignore[attr-defined]
            asked: list[asyncio.Task[Answer]] = []
            for count in (1, 2, 3):
                head = {"content-type": "multipart/form-data; boundary=B", "content-length": str(len(content))}
                asked.append(asyncio.create_task(call(app, scope("POST", "/v1/images/edits", head), [content])))
                while service.admission.load().count < count:
                    await asyncio.sleep(0.02)
                    assert not asked[-1].done(), asked[-1].result()
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_what_is_fetched_needs_room_before_it_is(kind: str) -> None:
    rules = FetchRules(frozenset({"images.example.com"}), max_bytes=900_000)
    bodies = Bodies(1_000_000, 1_000_000)

    def read(uploads: Uploads) -> Callable[..., Awaitable[object]]:
        return {"image": uploads.read, "audio": uploads.read_sounds, "video": partial(uploads.read_videos, frames=1)}[
            kind
        ]

    async def main() -> None:
        uploads = Uploads(rules=rules)
        lease = bodies.lease("a")
        lease.grow(200_000)
        with pytest.raises(ApiError) as caught:
            await read(uploads)([Source("url", url="https://images.example.com/a.png")], 1, tenant="a", hold=lease.add)
        assert caught.value.code == "queue_full"
        with pytest.raises(ApiError) as caught:  # what came in the body is counted already
            await read(uploads)([Source("url", url="data:image/png;base64,AAAA")], 1, tenant="a", hold=lease.add)
        assert caught.value.code == f"invalid_{kind}"
        await uploads.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "kind", "size", "status"),
    [
        ("/v1/images/generations", JSON, MAX_JSON + 1, 413),
        ("/v1/videos", JSON, 64 * 2**20 + 1, 413),
        ("/v1/videos/sync", JSON, 64 * 2**20 + 1, 413),
        ("/v1/chat/completions", JSON, 64 * 2**20 + 1, 413),
        ("/v1/images/edits", "multipart/form-data; boundary=B", 64 * 2**20 + 1, 413),
    ],
)
def test_json_without_pictures_is_short(tmp_path: Path, path: str, kind: str, size: int, status: int) -> None:
    async def main() -> Answer:
        async with service_in(tmp_path) as (app, _):
            client = Client([b"{"])
            await app(
                scope("POST", path, {"content-type": kind, "content-length": str(size)}), client.receive, client.send
            )
            assert client.taken == 0
            return client.answer

    assert asyncio.run(main()).status == status


# -- how often -------------------------------------------------------------------------------------------------------


def test_a_key_may_ask_so_often_a_minute_and_others_pay_nothing() -> None:
    now = [0.0]
    rates = Rates(60, lambda: now[0])
    for _ in range(60):
        rates.ask("a")
    with pytest.raises(ApiError) as caught:
        rates.ask("a")
    assert (caught.value.status, caught.value.code, caught.value.headers["retry-after"]) == (429, "rate_limited", "1")
    rates.ask("b")
    now[0] += 2.0
    rates.ask("a")
    rates.ask("a")
    assert code_of(lambda: rates.ask("a")) == "rate_limited"
    now[0] += 10_000
    for _ in range(60):
        rates.ask("a")
    assert code_of(lambda: rates.ask("a")) == "rate_limited", "no more than a minute's worth is saved up"


def test_the_edge_counts_what_needs_a_key_and_nothing_else(rules: Rules) -> None:
    app = protect([], replace(rules, rates=Rates(2)))

    def status(path: str, key: str = ALICE) -> int:
        return asyncio.run(call(app, scope(path=path, headers=head(key)))).status

    assert [status("/livez") for _ in range(5)] == [404] * 5
    assert [status("/v1/models", "wrong" * 8) for _ in range(5)] == [401] * 5
    assert [status("/v1/models") for _ in range(4)] == [404, 404, 429, 429]
    assert status("/v1/models", BOB) == 404


def test_a_rate_without_keys_and_limits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="api-key-file"):
        ServeOptions(tmp_path, "m", guard=Guard(per_minute=5))
    with pytest.raises(ConfigError, match="api-key-file"):
        ServeOptions(tmp_path, "m", guard=Guard(tenant_share=0.5))
    for wrong in (
        {"max_connections": 0},
        {"max_jobs": 0},
        {"per_minute": -1},
        {"max_bodies": 5},
        {"tenant_share": 0.0},
        {"tenant_share": 1.1},
        {"tenant_share": float("nan")},
    ):
        with pytest.raises(ConfigError):
            Guard(**wrong)  # type: ignore[arg-type]
