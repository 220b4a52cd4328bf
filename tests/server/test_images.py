"""Pictures over HTTP: at once, as a stream, as links and as jobs, with the official client and with raw requests."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from omnimuse.core.errors import NumericalError, WorkerLostError
from omnimuse.server.openapi import document
from omnimuse.server.options import Guard, ServeOptions
from omnimuse.server.routes import chat, files, images, models
from tests.server.picture_server import MODEL, Running, picture_server
from tests.waiting import wait_until

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with picture_server(tmp_path_factory.mktemp("data")) as running:
        running.workers.fail = {
            "poison": WorkerLostError("the worker that drew this was lost"),
            "nan": NumericalError("the picture is not a number"),
        }
        yield running


@pytest.fixture
def slow(server: Running) -> Iterator[Running]:
    """The server with steps of 50 ms."""
    server.workers.pace = 0.05
    yield server
    server.workers.pace = 0.0


def post(server: Running, body: dict[str, Any], path: str = PATH, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(f"{server.url}{path}", json=body, headers=named, timeout=30)


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The data of every event before [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def spooled(server: Running) -> list[Path]:
    return list(server.service.files.spool.iterdir())


# -- at once ---------------------------------------------------------------------------------------------------------


def test_the_official_client_gets_pictures_with_their_seeds(server: Running) -> None:
    with server.client() as client:
        answer = client.images.generate(
            model=MODEL,
            prompt="two circles",
            n=2,
            size="64x96",
            quality="auto",
            output_format="jpeg",
            output_compression=80,
            extra_body={"seed": 7, "num_inference_steps": 4, "safety_identifier": "someone"},
        )
    assert answer.data is not None
    pictures = [Image.open(io.BytesIO(base64.b64decode(item.b64_json or ""))) for item in answer.data]
    assert [picture.size for picture in pictures] == [(64, 96)] * 2
    assert [picture.format for picture in pictures] == ["JPEG"] * 2
    assert [item.model_extra["seed"] for item in answer.data] == [7, 8]  # type: ignore[index]
    assert (answer.size, answer.output_format, answer.quality) == ("64x96", "jpeg", "medium")
    assert answer.safety_identifier == "someone"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 4 * 6
    assert "denoise_s" in answer.model_extra["timings"]  # type: ignore[index]
    assert not spooled(server)


def test_an_answer_says_its_seeds_in_a_header_and_the_same_seed_gives_the_same_picture(server: Running) -> None:
    first = post(server, {"prompt": "x", "n": 2})
    seeds = [item["seed"] for item in first.json()["data"]]
    assert first.headers["x-seed"] == ",".join(map(str, seeds))
    again = post(server, {"prompt": "x", "n": 2, "seed": seeds[0]})
    assert [item["b64_json"] for item in again.json()["data"]] == [item["b64_json"] for item in first.json()["data"]]


def test_a_url_leads_to_the_picture_for_those_who_have_the_whole_link(server: Running) -> None:
    with server.client() as client:
        answer = client.images.generate(model=MODEL, prompt="x", response_format="url", extra_body={"seed": 3})
    assert answer.data is not None
    url = answer.data[0].url
    assert url is not None
    assert answer.data[0].b64_json is None
    got = httpx2.get(url)
    assert got.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(got.content)).size == (128, 128)
    assert httpx2.head(url).status_code == 200
    base = url.partition("?")[0]
    forged = {
        "no signature": base,
        "another": url[:-1] + ("0" if url[-1] != "0" else "1"),
        "later": url.replace("expires=", "expires=9"),
    }
    for link in forged.values():
        assert httpx2.get(link).json()["error"]["code"] == "invalid_signature"
    name = base.split("/")[-2]
    assert httpx2.get(url.replace(name, "..%2Fjobs.sqlite")).status_code in (403, 404)
    server.service.files.remove(name)
    assert httpx2.get(url).json()["error"]["code"] == "file_not_found"


def test_a_linked_picture_is_shown_in_place_by_ranges_and_never_sent_twice(server: Running) -> None:
    url = post(server, {"prompt": "x", "response_format": "url"}).json()["data"][0]["url"]
    whole = httpx2.get(url)
    assert whole.headers["content-disposition"] == 'inline; filename="omnimuse.png"'
    assert whole.headers["cache-control"] == "private, immutable"
    head = httpx2.head(url)
    assert (head.headers["content-length"], head.content) == (str(len(whole.content)), b"")
    part = httpx2.get(url, headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"PNG")
    assert httpx2.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304


def test_links_keep_no_more_than_a_key_may_have(tmp_path: Path) -> None:
    guard = Guard(max_kept=500)
    with picture_server(tmp_path, change=lambda options: replace(options, guard=guard)) as server:
        seen = [post(server, {"prompt": "x", "response_format": "url", "n": 2}) for _ in range(3)]
        assert seen[0].status_code == 200 and seen[-1].json()["error"]["code"] == "quota_exceeded"
        assert seen[-1].headers["x-should-retry"] == "false"
        assert post(server, {"prompt": "x"}).status_code == 200
        assert server.service.files.linked("another") == 0


def test_a_restart_gives_no_key_a_new_quota_of_links(tmp_path: Path) -> None:
    def small(options: ServeOptions) -> ServeOptions:
        return replace(options, guard=Guard(max_kept=500))

    wanted = {"prompt": "x", "response_format": "url", "n": 2}
    with picture_server(tmp_path, change=small) as server:
        while post(server, wanted).status_code == 200:
            pass
    with picture_server(tmp_path, change=small) as server:
        assert post(server, wanted).json()["error"]["code"] == "quota_exceeded"
        assert post(server, {"prompt": "x"}).status_code == 200


def test_a_link_expires(tmp_path: Path) -> None:
    with picture_server(tmp_path, change=lambda options: replace(options, keep=-5.0)) as server:
        url = post(server, {"prompt": "x", "response_format": "url"}).json()["data"][0]["url"]
        error = httpx2.get(url).json()["error"]
    assert error["code"] == "invalid_signature"
    assert "expired" in error["message"]


def test_the_answer_is_described_for_programs() -> None:
    described = document([*images.OPERATIONS, *chat.OPERATIONS, *files.OPERATIONS, *models.OPERATIONS], "1")
    assert set(described["paths"]) == {
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/{id}",
        "/v1/chat/completions",
        "/v1/files/{name}/content",
        "/v1/models",
        "/v1/models/{model}",
    }
    fields_ = described["components"]["schemas"]["ImageRequest"]
    assert fields_["additionalProperties"] is False
    assert "output_path" not in fields_["properties"]


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_refusal_reaches_the_official_client_with_code_and_param(server: Running) -> None:
    before = len(server.workers.started)
    with server.client(retries=2) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.images.generate(model=MODEL, prompt="x", size="100x100")
        with pytest.raises(openai.NotFoundError) as missing:
            client.images.generate(model="gpt-image-2", prompt="x")
        with pytest.raises(openai.BadRequestError) as unknown:
            client.images.generate(model=MODEL, prompt="x", extra_body={"num_steps": 4})
    assert (bad.value.code, bad.value.param) == ("invalid_value", "size")
    assert "96 or 112" in bad.value.message
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "num_steps")
    assert len(server.workers.started) == before


def test_a_failure_of_the_work_is_an_error_and_not_retried(server: Running) -> None:
    before = len(server.workers.started)
    with server.client(retries=2) as client:
        with pytest.raises(openai.InternalServerError) as lost:
            client.images.generate(model=MODEL, prompt="poison")
        with pytest.raises(openai.InternalServerError) as numeric:
            client.images.generate(model=MODEL, prompt="nan")
    assert (lost.value.status_code, lost.value.code) == (503, "worker_lost")
    assert (numeric.value.status_code, numeric.value.code) == (500, "numerical_error")
    assert len(server.workers.started) == before + 2


def head_of(server: Running, headers: str) -> bytes:
    """The first line of the answer to a request for a picture whose body does not come."""
    where = httpx2.URL(server.url)
    with socket.create_connection((where.host, where.port or 80), timeout=10) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        connection.sendall(head.encode())
        with connection.makefile("rb") as file:
            return file.readline()


def test_a_full_queue_is_refused_before_any_work_even_for_a_stream(tmp_path: Path) -> None:
    with picture_server(tmp_path, change=lambda options: replace(options, max_queue=1)) as server:
        server.workers.pace = 0.1
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(post, server, {"prompt": "first"})
            wait_until(lambda: bool(server.workers.running))
            for body in ({"prompt": "second"}, {"prompt": "second", "stream": True}):
                refused = post(server, body)
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
                assert 1 <= int(refused.headers["retry-after"]) <= 120
            assert b"429" in head_of(server, "Content-Length: 5000000\r\n")  # of whose body nothing was sent
            assert first.result().status_code == 200
        assert [request.prompt for request in server.workers.started] == ["first"]
        assert b'rejections_total{reason="queue_full"} 3.0' in server.service.metrics.render()[0]


def test_a_server_whose_workers_cannot_start_says_so_at_once(tmp_path: Path) -> None:
    with picture_server(tmp_path) as server:
        server.workers.broken = "the files at /secret/place are damaged"
        answer = post(server, {"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
    assert "secret" not in answer.text


# -- streams ---------------------------------------------------------------------------------------------------------


def test_the_official_client_streams_partial_images_and_the_picture(server: Running) -> None:
    with server.client() as client:
        stream = client.images.generate(
            model=MODEL, prompt="x", stream=True, partial_images=3, size="64x64", extra_body={"seed": 9}
        )
        seen = list(stream)
    partial, last = seen[:-1], seen[-1]
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]  # type: ignore[union-attr]
    assert [event.model_extra["step"] for event in partial] == [2, 6, 8]  # type: ignore[index]
    assert Image.open(io.BytesIO(base64.b64decode(partial[0].b64_json))).format == "JPEG"
    assert last.type == "image_generation.completed"
    assert Image.open(io.BytesIO(base64.b64decode(last.b64_json))).size == (64, 64)
    assert last.usage.total_tokens == 16
    assert (last.size, last.quality, last.output_format) == ("64x64", "auto", "png")
    assert last.model_extra["seed"] == 9  # type: ignore[index]


def test_a_stream_shows_progress_only_when_asked_and_every_output_has_its_previews(server: Running) -> None:
    body = {"prompt": "x", "n": 2, "stream": True, "partial_images": 2, "num_inference_steps": 4}
    quiet = events(post(server, body))
    assert {event["type"] for event in quiet} == {"image_generation.partial_image", "image_generation.completed"}
    talking = events(post(server, {**body, "progress": True}))
    steps = [event for event in talking if event["type"] == "image_generation.progress"]
    assert [(event["output"], event["step"], event["steps"]) for event in steps if event["output"] == 1] == [
        (1, step, 4) for step in (1, 2, 3, 4)
    ]
    shown = [(event["output"], event["partial_image_index"], event["step"]) for event in quiet if "step" in event]
    assert sorted(shown) == [(0, 0, 1), (0, 1, 3), (1, 0, 1), (1, 1, 3)]
    assert [event["output"] for event in quiet if event["type"].endswith("completed")] == [0, 1]
    assert not spooled(server)


def test_a_failure_in_a_stream_is_an_error_event(server: Running) -> None:
    with server.client() as client, pytest.raises(openai.APIError) as caught:
        list(client.images.generate(model=MODEL, prompt="poison", stream=True, partial_images=1))
    assert caught.value.code == "worker_lost"


# -- clients that go -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_stops_the_work_within_a_step(slow: Running, stream: bool) -> None:
    before = len(slow.workers.cancelled)
    body = {"prompt": "a long one", "num_inference_steps": 1000, "stream": stream}
    with httpx2.Client(timeout=httpx2.Timeout(10, read=0.3)) as client:
        with pytest.raises(httpx2.ReadTimeout):
            client.post(f"{slow.url}{PATH}", json=body)
    wait_until(lambda: len(slow.workers.cancelled) == before + 1, 3)
    wait_until(lambda: slow.service.admission.load().count == 0, 3)
    assert not slow.workers.running
    assert b'omnimuse_cancelled_total{where="running"}' in slow.service.metrics.render()[0]


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_client_s_patience_as_a_hint(slow: Running) -> None:
    assert post(slow, {"prompt": "measured", "num_inference_steps": 20}).status_code == 200
    before = len(slow.workers.started)
    body = {"prompt": "x", "num_inference_steps": 2000, "stream": False}
    refused = post(slow, body, x_stainless_read_timeout="3")
    assert refused.json()["error"]["code"] == "deadline_unreachable"
    assert post(slow, {**body, "timeout_s": 3}).json()["error"]["code"] == "deadline_unreachable"
    assert len(slow.workers.started) == before


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_background_request_is_a_job_that_is_asked_for_later(server: Running) -> None:
    accepted = post(server, {"prompt": "x", "background": True, "seed": 4, "safety_identifier": "me"})
    job = accepted.json()
    assert accepted.status_code == 200
    assert accepted.headers["location"] == f"/v1/images/{job['id']}"
    assert job["status"] in ("queued", "in_progress")
    url = f"{server.url}/v1/images/{job['id']}"
    wait_until(lambda: httpx2.get(url).json()["status"] == "completed")
    done = httpx2.get(url).json()
    assert (done["progress"], done["object"]) == (100, "image.generation")
    assert done["result"]["data"][0]["seed"] == 4
    assert "safety_identifier" not in done["result"], "it is not kept"
    assert (
        done["result"]["data"][0]["b64_json"] == post(server, {"prompt": "x", "seed": 4}).json()["data"][0]["b64_json"]
    )
    assert httpx2.delete(url).json() == {"id": job["id"], "object": "image.generation.deleted", "deleted": True}
    for gone in (httpx2.get(url), httpx2.delete(url)):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "image_not_found")


def test_a_failed_job_is_an_answer_with_the_reason(server: Running) -> None:
    job = post(server, {"prompt": "nan", "background": True}).json()
    url = f"{server.url}/v1/images/{job['id']}"
    wait_until(lambda: httpx2.get(url).json()["status"] == "failed")
    answer = httpx2.get(url)
    assert answer.status_code == 200
    assert (answer.json()["error"]["code"], answer.json()["error"]["type"]) == ("numerical_error", "server_error")


def test_ten_requests_with_one_idempotency_key_are_one_generation_with_ten_equal_answers(slow: Running) -> None:
    before = len(slow.workers.started)
    body = {"prompt": "once", "num_inference_steps": 5}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: post(slow, body, idempotency_key="k-1"), range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len(slow.workers.started) == before + 1
    other = post(slow, {**body, "prompt": "twice"}, idempotency_key="k-1")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert other.headers["x-should-retry"] == "false"
    bad = post(slow, body, idempotency_key="k" * 300)
    assert (bad.json()["error"]["code"], bad.json()["error"]["param"]) == ("invalid_value", "idempotency-key")


def test_a_link_to_the_picture_of_a_key_is_the_same_each_time(server: Running) -> None:
    body = {"prompt": "x", "response_format": "url"}
    first, second = (post(server, body, idempotency_key="k-url") for _ in range(2))
    assert first.content == second.content
    assert httpx2.get(first.json()["data"][0]["url"]).status_code == 200


def test_a_stream_with_a_key_can_be_taken_up_again(server: Running) -> None:
    body = {"prompt": "x", "stream": True, "partial_images": 1}
    first, second = (events(post(server, body, idempotency_key="k-stream")) for _ in range(2))
    assert first[-1]["type"] == second[-1]["type"] == "image_generation.completed"
    assert first[-1]["b64_json"] == second[-1]["b64_json"]


def test_a_key_outlives_the_server_and_a_client_that_goes(tmp_path: Path) -> None:
    body = {"prompt": "x", "num_inference_steps": 20}
    with picture_server(tmp_path) as server:
        server.workers.pace = 0.05
        with httpx2.Client(timeout=httpx2.Timeout(10, read=0.3)) as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{server.url}{PATH}", json=body, headers={"idempotency-key": "k"})
        first = post(server, body, idempotency_key="k")
        assert len(server.workers.started) == 1
    with picture_server(tmp_path) as server:
        again = post(server, body, idempotency_key="k")
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == first.json()
        assert not server.workers.started


def test_files_say_how_they_were_made_unless_the_operator_wants_them_not_to(tmp_path: Path) -> None:
    for tell in (True, False):
        guard = Guard(tell=tell)
        with picture_server(
            tmp_path / str(tell), change=lambda options, own=guard: replace(options, guard=own)
        ) as server:
            assert post(server, {"prompt": "x"}).status_code == 200
            assert [form.tell for form in server.workers.forms] == [tell]


def test_links_lead_to_where_the_client_came_in_through_a_proxy_with_tls(server: Running) -> None:
    """The lines of the example in docs/serving.md; uvicorn believes them from this machine only."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in page and "proxy_set_header Host $host;" in page
    headers = {"host": "localhost", "x-forwarded-proto": "https"}
    answer = post(server, {"prompt": "x", "response_format": "url"}, **headers)
    assert answer.json()["data"][0]["url"].startswith("https://localhost/v1/files/")
