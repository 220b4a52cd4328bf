"""The edge: what every response carries, and what is refused before a route or a body is looked at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from omnimuse.core.errors import CapacityError, RequestError
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.checks import MAX_HEADERS, Rules
from omnimuse.server.http.edge import protect
from omnimuse.server.http.keys import Keys
from tests.server.asgi import Answer, Client, call, scope

KEY = "k" * 32
RULES = Rules(Keys.load(None), max_body=100_000)


async def echo(request: Request) -> Response:
    body = await read_json(request) if request.method == "POST" else {}
    return JSONResponse({"body": body, "tenant": request.state.tenant, "id": request.state.request_id})


async def page(request: Request) -> Response:
    return HTMLResponse("<p>hello</p>")


async def plain(request: Request) -> Response:
    return PlainTextResponse("ok")


async def fail(request: Request) -> Response:
    errors: dict[str, Exception] = {
        "unexpected": RuntimeError("secret /home/x"),
        "request": RequestError("size=3 is wrong", "size"),
        "full": CapacityError("full", 7.0),
        "api": refusal("video_not_found", "no video x"),
        "text": RequestError("\ud800 and /home/me/x"),
    }
    raise errors[request.path_params["name"]]


ROUTES = [
    Route("/", page),
    Route("/livez", plain),
    Route("/v1/echo", echo, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    Route("/v1/videos/{id}/cancel", plain, methods=["POST"]),
    Route("/v1/files/{id}/content", plain),
    Route("/playground/{name}", plain),
    Route("/fail/{name}", fail),
]


def ask(
    method: str = "GET",
    path: str = "/v1/echo",
    headers: dict[str, str] | None = None,
    content: Iterable[bytes] = (b"{}",),
    rules: Rules = RULES,
) -> Answer:
    given_ = {"content-type": "application/json", **(headers or {})}
    return asyncio.run(call(protect(ROUTES, rules), scope(method, path, given_), content))


@pytest.fixture
def keyed(tmp_path: Path) -> Rules:
    (tmp_path / "keys").write_text(f"alice:{KEY}\n")
    (tmp_path / "keys").chmod(0o600)
    return replace(RULES, keys=Keys.load(tmp_path / "keys"))


# -- every response ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/echo", 200),
        ("POST", "/v1/echo", 200),
        ("GET", "/", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/livez/", 404),
        ("POST", "/livez", 405),
        ("GET", "/fail/unexpected", 500),
        ("GET", "/fail/full", 429),
    ],
)
def test_every_response_has_a_request_id_and_is_not_sniffed(method: str, path: str, status: int) -> None:
    answer = ask(method, path)
    assert (answer.status, answer.whole) == (status, True)
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status >= 400:
        assert set(answer.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("given_id", "kept"), [("abc-1.2_X", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)]
)
def test_a_sane_request_id_of_the_client_is_kept(given_id: str, kept: bool) -> None:
    answer = ask(headers={"x-request-id": given_id})
    assert (answer.headers["x-request-id"] == given_id) is kept
    assert json.loads(answer.content)["id"] == answer.headers["x-request-id"]


def test_errors_of_routes_are_json_with_our_codes() -> None:
    assert ask(path="/fail/request").error == {
        "message": "size=3 is wrong",
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid_value",
    }
    assert ask(path="/fail/api").error["code"] == "video_not_found"
    assert ask(path="/fail/full").headers["retry-after"] == "7"
    assert ask(path="/nowhere").error["code"] == "not_found"
    assert ask("PUT", "/livez").headers["allow"] in ("GET, HEAD", "HEAD, GET")


def test_nothing_of_an_unexpected_error_is_told() -> None:
    for path in ("/fail/unexpected", "/fail/text"):
        assert b"secret" not in ask(path=path).content and b"/home" not in ask(path=path).content


def test_pages_get_a_strict_policy_and_api_answers_are_not_stored() -> None:
    policy = ask(path="/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert ask().headers["cache-control"] == "no-store"
    assert "content-security-policy" not in ask().headers


def test_no_header_allows_another_origin() -> None:
    for method in ("GET", "OPTIONS"):
        assert not any(name.startswith("access-control") for name in ask(method).headers)


# -- the head of a request -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("app.localhost:1", 200),
        ("127.0.0.1:8000", 200),
        ("127.9.9.9", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.5:8000", 403),
        ("0.0.0.0:8000", 403),
        ("localhost@evil.example", 403),
        ("evil.example#localhost", 403),
        ("localhost:99999", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_server_for_its_own_machine_answers_to_its_own_names_only(host: str, status: int) -> None:
    answer = ask(headers={"host": host})
    assert answer.status == status
    if status == 403:
        assert answer.error["code"] == "host_not_allowed" and answer.headers["x-should-retry"] == "false"


def test_a_server_with_keys_or_for_others_answers_to_any_name(keyed: Rules) -> None:
    assert ask(headers={"host": "art.example", "authorization": f"Bearer {KEY}"}, rules=keyed).status == 200
    assert ask(headers={"host": "art.example"}, rules=replace(RULES, local_only=False)).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("art.example", 200),
        ("ART.example:8000", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("art.example.evil.example", 403),
        ("192.168.1.5", 403),
        ("", 403),
    ],
)
def test_a_public_server_answers_to_the_names_that_its_operator_gave_it(keyed: Rules, host: str, status: int) -> None:
    open_ = replace(RULES, local_only=False, hosts=frozenset({"art.example"}))
    assert ask(headers={"host": host}, rules=open_).status == status
    named = replace(keyed, hosts=frozenset({"art.example"}))
    assert ask(headers={"host": host, "authorization": f"Bearer {KEY}"}, rules=named).status == status


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:9999"},
    {"origin": "http://localhost"},
    {"origin": "https://localhost.evil.example:8000"},
    {"origin": "file://"},
    {"origin": "http://[::1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://localhost:8000"},
]
OWN = [
    {},
    {"origin": "http://localhost:8000"},
    {"origin": "http://LOCALHOST:8000"},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "same-origin", "origin": "https://art.example"},
]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites_change_nothing(method: str, headers: dict[str, str]) -> None:
    answer = ask(method, headers=headers)
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert ask("GET", headers=headers).status == 200


@pytest.mark.parametrize("headers", OWN)
def test_our_own_page_and_programs_may_change_things(headers: dict[str, str]) -> None:
    assert ask("POST", headers=headers).status == 200


def test_a_page_behind_a_proxy_with_tls_is_our_own(keyed: Rules) -> None:
    headers = {"host": "art.example", "origin": "https://art.example", "authorization": f"Bearer {KEY}"}
    assert ask("POST", headers=headers, rules=keyed).status == 200
    assert ask("POST", headers={**headers, "origin": "https://art.example:8443"}, rules=keyed).status == 403


def test_websockets_are_refused() -> None:
    sent: list[Any] = []

    async def main() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        await protect(ROUTES, RULES)({"type": "websocket", "path": "/", "headers": []}, Client().receive, send)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/echo", {f"x-{i}": "" for i in range(MAX_HEADERS)}, 431, "headers_too_large"),
        ("/v1/echo", {"x-long": "x" * 40_000}, 431, "headers_too_large"),
        ("/" + "x" * 9000, {}, 414, "uri_too_long"),
        ("/v1/echo", {"content-length": "1e3"}, 400, "invalid_value"),
        ("/v1/echo", {"content-length": "-5"}, 400, "invalid_value"),
    ],
)
def test_oversized_heads_are_refused(path: str, headers: dict[str, str], status: int, code: str) -> None:
    answer = ask(path=path, headers=headers)
    assert (answer.status, answer.error["code"]) == (status, code)


# -- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/echo", {}),
        ("/v1/echo", {"authorization": "Bearer wrong"}),
        ("/nowhere", {}),
        ("/metrics", {}),
        ("/openapi.json", {}),
        ("//livez", {}),
        ("/playground/../v1/echo", {}),
        ("/playground/a/b", {}),
        ("/v1/files/../echo", {}),
    ],
)
def test_without_a_right_key_nothing_but_the_page_and_health_is_shown(
    keyed: Rules, path: str, headers: dict[str, str]
) -> None:
    answer = ask(path=path, headers=headers, rules=keyed)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer" and answer.headers["x-should-retry"] == "false"


def test_a_key_in_the_query_is_no_key(keyed: Rules) -> None:
    asked = scope("GET", "/v1/echo", query=f"api_key={KEY}&authorization=Bearer%20{KEY}")
    assert asyncio.run(call(protect(ROUTES, keyed), asked)).status == 401


@pytest.mark.parametrize("path", ["/", "/livez", "/playground/app.js", "/v1/files/x/content"])
def test_the_page_health_and_signed_links_need_no_key(keyed: Rules, path: str) -> None:
    assert ask(path=path, rules=keyed).status == 200
    assert ask("POST", path, rules=keyed).status == 401


def test_a_right_key_is_a_tenant(keyed: Rules) -> None:
    answer = ask("POST", headers={"authorization": f"Bearer {KEY}"}, rules=keyed)
    assert json.loads(answer.content)["tenant"] == "alice"


# -- bodies --------------------------------------------------------------------------------------------------


def test_a_body_that_is_declared_too_long_is_refused_unread() -> None:
    client = Client([b"x"])
    asked = scope("POST", "/v1/echo", {"content-type": "application/json", "content-length": "100001"})
    asyncio.run(protect(ROUTES, RULES)(asked, client.receive, client.send))
    assert (client.answer.status, client.answer.error["code"]) == (413, "request_too_large")
    assert client.answer.headers["connection"] == "close" and client.taken == 0


def test_a_body_that_grows_too_long_is_refused_on_the_way() -> None:
    client = Client([b"x" * 1000] * 1000)
    asked = scope("POST", "/v1/echo", {"content-type": "application/json", "transfer-encoding": "chunked"})
    asyncio.run(protect(ROUTES, RULES)(asked, client.receive, client.send))
    assert (client.answer.status, client.answer.error["code"]) == (413, "request_too_large")
    assert client.answer.headers["connection"] == "close" and client.taken == 101


def test_a_body_of_just_the_allowed_length_is_read() -> None:
    content = b'{"a": "' + b"x" * 99_991 + b'"}'
    assert len(content) == RULES.max_body
    assert ask("POST", content=[content[:60_000], content[60_000:]]).status == 200
    assert ask("POST", content=[content, b" "]).status == 413


def test_a_body_that_never_ends_is_408() -> None:
    client = Client([b"{"] * 3, unfinished=True)
    asked = scope("POST", "/v1/echo", {"content-type": "application/json", "transfer-encoding": "chunked"})
    asyncio.run(protect(ROUTES, replace(RULES, patience=0.2))(asked, client.receive, client.send))
    assert (client.answer.status, client.answer.error["code"]) == (408, "request_timeout")
    assert client.answer.headers["x-should-retry"] == "false" and client.answer.headers["connection"] == "close"


def test_a_body_in_drips_is_408_although_each_drip_is_quick() -> None:
    client = Client([b" "] * 1000)

    async def drip() -> Any:
        await asyncio.sleep(0.02)
        return await client.receive()

    asked = scope("POST", "/v1/echo", {"content-type": "application/json"})
    asyncio.run(protect(ROUTES, replace(RULES, patience=0.2))(asked, drip, client.send))
    assert client.answer.status == 408 and client.taken < 20


def test_patience_is_for_bodies_and_not_for_work() -> None:
    async def slow(request: Request) -> Response:
        await read_json(request)
        await asyncio.sleep(0.3)
        return PlainTextResponse("ok")

    rules = replace(RULES, patience=0.1)
    app = protect([Route("/slow", slow, methods=["POST"])], rules)
    assert asyncio.run(call(app, scope("POST", "/slow", {"content-type": "application/json"}), [b"{}"])).status == 200


# -- draining ------------------------------------------------------------------------------------------------


def test_a_server_that_drains_takes_nothing_new_and_still_answers() -> None:
    rules = replace(RULES, draining=lambda: True)
    answer = ask("POST", rules=rules)
    assert (answer.status, answer.error["code"]) == (503, "server_draining")
    assert 1 <= int(answer.headers["retry-after"]) <= 120 and "x-should-retry" not in answer.headers
    assert ask("GET", rules=rules).status == 200
    assert ask("DELETE", rules=rules).status == 200
    assert ask("POST", "/v1/videos/x/cancel", rules=rules).status == 200


# -- anything ------------------------------------------------------------------------------------------------

HEADER = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=255), max_size=40)


@given(
    st.sampled_from(["GET", "POST", "DELETE", "BREW"]),
    st.text(max_size=30),
    st.dictionaries(st.sampled_from(["host", "origin", "authorization", "content-length", "x-request-id"]), HEADER),
    st.binary(max_size=50),
)
def test_any_request_gets_a_whole_answer_that_is_no_fault_of_ours(
    method: str, path: str, headers: dict[str, str], content: bytes
) -> None:
    asked = scope(method, "/", {**headers, "content-type": "application/json"})
    answer = asyncio.run(call(protect(ROUTES, RULES), {**asked, "path": f"/v1/echo{path}"}, [content]))
    assert answer.whole and 200 <= answer.status < 500 and answer.headers["x-request-id"]


# -- a full queue --------------------------------------------------------------------------------------------


def full_for_alice(tenant: str) -> None:
    if tenant == "alice":
        raise CapacityError("too much is in progress", 7.0)


def sent(rules: Rules, headers: dict[str, str], path: str = "/v1/echo", method: str = "POST") -> Client:
    """What became of a request whose body comes in two pieces."""
    client = Client([b'{"a": ', b"1}"])
    given_ = {"content-type": "application/json", "authorization": f"Bearer {KEY}", **headers}
    asyncio.run(protect(ROUTES, rules)(scope(method, path, given_), client.receive, client.send))
    return client


def test_what_finds_no_place_is_refused_before_its_body_is_read(keyed: Rules) -> None:
    busy = replace(keyed, drawing=frozenset({"/v1/echo"}), check_room=full_for_alice)
    client = sent(busy, {"content-length": "8"})
    assert (client.answer.status, client.taken, client.answer.whole) == (429, 0, True)
    assert client.answer.error["code"] == "queue_full"
    assert client.answer.headers["retry-after"] == "7"
    assert "x-should-retry" not in client.answer.headers


def test_what_is_no_new_work_needs_no_place(keyed: Rules) -> None:
    busy = replace(keyed, drawing=frozenset({"/v1/echo"}), check_room=full_for_alice)
    assert sent(busy, {"idempotency-key": "may-be-done-already"}).answer.status == 200
    assert sent(busy, {}, "/v1/videos/x/cancel").answer.status == 200
    assert sent(busy, {}, method="DELETE").answer.status == 200
    assert sent(replace(busy, check_room=RULES.check_room), {}).answer.status == 200


def test_a_client_that_waits_to_be_asked_for_its_body_is_told_that_the_connection_ends(keyed: Rules) -> None:
    busy = replace(keyed, drawing=frozenset({"/v1/echo"}), check_room=full_for_alice)
    client = sent(busy, {"content-length": "8", "expect": "100-continue"})
    assert (client.answer.status, client.taken, client.answer.headers["connection"]) == (429, 0, "close")
    assert "connection" not in sent(busy, {"content-length": "8"}).answer.headers
