"""Pictures in a conversation: the official client, vLLM-Omni's way of answering, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from omnimuse.deploy.wire import Remarks
from omnimuse.media.picture import pixels_of
from omnimuse.server.options import Clients
from tests.server.picture_server import MODEL, Running, picture_server, shapes
from tests.unit.media.hostile import noise

ASKED_PARTS = [{"type": "text", "text": "a red circle"}]
ASKED = [{"role": "user", "content": "a red circle"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with picture_server(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture(scope="module")
def compatible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("compat")
    with picture_server(
        folder, change=lambda options: replace(options, clients=Clients(compat="vllm-omni"))
    ) as running:
        yield running


def data_url(image: Image.Image, kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def post(server: Running, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": ASKED, **body}, timeout=30)


def picture(part: Any) -> Image.Image:
    head, _, data = part["image_url"]["url"].partition(",")
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{(found.format or '').lower()};base64"
    return found


def test_the_official_client_finds_the_picture_in_the_message(server: Running) -> None:
    with server.client() as client:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "a red"}, {"type": "text", "text": "circle"}]}
            ],
            extra_body={"modalities": ["text", "image"], "size": "64x96", "seed": 5},
        )
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content, choice.message.role) == ("stop", None, "assistant")
    [part] = choice.message.model_extra["images"]  # type: ignore[index]
    assert picture(part).size == (64, 96)
    assert part["seed"] == 5
    assert server.workers.started[-1].prompt == "a red\ncircle"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert "warnings" not in (answer.model_extra or {})


def test_n_makes_choices_and_vllm_omni_s_name_for_it_makes_pictures_of_one_message(server: Running) -> None:
    choices = post(server, n=2, seed=1).json()["choices"]
    assert [len(choice["message"]["images"]) for choice in choices] == [1, 1]
    [choice] = post(server, extra_body={"num_outputs_per_prompt": 2, "seed": 1}).json()["choices"]
    assert [part["seed"] for part in choice["message"]["images"]] == [1, 2]


def test_earlier_messages_have_no_part_in_the_picture_and_the_answer_says_so(server: Running) -> None:
    history = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a square"},
        {"role": "assistant", "content": None},
        *ASKED,
    ]
    answer = post(server, messages=history).json()
    assert server.workers.started[-1].prompt == "a red circle"
    assert "3 other messages" in answer["warnings"][0]


def test_a_stream_brings_the_picture_in_a_delta_and_the_usage_last(server: Running) -> None:
    with server.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    [images] = [
        chunk.choices[0].delta.model_extra["images"]  # type: ignore[index]
        for chunk in chunks
        if chunk.choices and chunk.choices[0].delta.model_extra
    ]
    assert picture(images[0]).size == (128, 128)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 64


@pytest.mark.parametrize("usage", [False, True])
def test_an_answer_and_the_last_piece_of_a_stream_tell_what_every_block_took(server: Running, usage: bool) -> None:
    blocks = {"net.blocks.0": 0.5, "net.blocks.1": 0.25}
    asked = {"block_timings": True, "n": 2}
    options = {"stream_options": {"include_usage": True}} if usage else {}
    server.workers.remarks = Remarks(blocks=blocks)
    try:
        whole = post(server, **asked).json()
        assert server.workers.started[-1].blocks
        text = post(server, **asked, stream=True, **options).text
    finally:
        server.workers.remarks = Remarks()
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert [whole["block_timings"], chunks[-1]["block_timings"]] == [blocks] * 2
    assert chunks[-1]["timings"].keys() == whole["timings"].keys() == {"queue_s", "denoise_s"}
    assert not any("block_timings" in chunk for chunk in chunks[:-1])
    assert not {"block_timings"} & post(server).json().keys()


def test_clients_of_vllm_omni_find_content_parts(compatible: Running) -> None:
    [choice] = post(compatible, extra_body={"height": 64, "width": 64}).json()["choices"]
    [part] = choice["message"]["content"]
    assert picture(part).size == (64, 64)
    text = post(compatible, stream=True, n=2).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    parts = [
        choice["delta"]["content"] for chunk in chunks for choice in chunk["choices"] if choice["delta"].get("content")
    ]
    assert [len(found) for found in parts] == [1, 1]
    assert picture(parts[0][0]).size == (128, 128)
    assert text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "missing_parameter", "messages"),
        ({"messages": None}, "missing_parameter", "messages"),
        ({"messages": "x"}, "invalid_value", "messages"),
        ({"messages": ["x"]}, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}]},
            "unsupported_task",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "invalid_value",
            "messages[0].content[0]",
        ),
        ({"modalities": ["text"]}, "unsupported_parameter", "modalities"),
        ({"modalities": ["image", "audio"]}, "unsupported_parameter", "modalities"),
        ({"modalities": [{}]}, "invalid_value", "modalities"),
        ({"modalities": []}, "unsupported_parameter", "modalities"),
        ({"temperature": 0}, "unsupported_parameter", "temperature"),
        ({"stop": ["x"]}, "unsupported_parameter", "stop"),
        ({"top_k": 40}, "unsupported_parameter", "top_k"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"stream_options": {"include_usage": True}}, "conflicting_parameters", "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "invalid_value", "stream_options.x"),
        ({"model": "gpt-5"}, "model_not_found", "model"),
        ({"size": "100x100"}, "invalid_value", "size"),
        ({"mesages": []}, "unknown_parameter", "mesages"),
    ],
)
def test_what_a_chat_cannot_honour_is_refused(server: Running, body: dict[str, Any], code: str, param: str) -> None:
    before = len(server.workers.started)
    error = post(server, **body).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert len(server.workers.started) == before


def test_a_picture_in_the_last_message_is_what_the_drawing_starts_from(server: Running) -> None:
    given = Image.new("RGB", (96, 48), "teal")
    for url in (data_url(given, "PNG"), data_url(given, "WEBP", lossless=True)):
        image = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
        asked = [{"role": "user", "content": [{"type": "text", "text": "a star"}, image]}]
        answer = post(server, messages=[{"role": "user", "content": [*ASKED_PARTS, image]}, *asked], strength=0.4)
        assert answer.status_code == 200, answer.text
        request = server.workers.started[-1]
        assert (request.prompt, request.params.strength) == ("a star", 0.4)
        [seen] = request.images
        assert (pixels_of(seen) == (0, 128, 128)).all() and (seen.width, seen.height) == (96, 48)
        [part] = answer.json()["choices"][0]["message"]["images"]
        assert picture(part).size == (176, 96), "the proportions of the picture, the area of the model"
        assert "1 other messages" in answer.json()["warnings"][0]
    text_alone = post(server, messages=[{"role": "user", "content": [*ASKED_PARTS, image]}, *ASKED])
    assert text_alone.status_code == 200
    assert len(server.workers.started[-1].images) == 1, "that of an earlier message, since this one has none"


def test_a_stream_shows_unfinished_pictures_where_that_was_asked_for(server: Running) -> None:
    asked = {"partial_images": 2, "num_inference_steps": 9}
    with server.client() as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "a red circle"}], stream=True, extra_body=asked
        )
        found = [(chunk.choices[0].delta.model_extra or {}).get("images") or [] for chunk in stream]
    *looks, [picture] = [images for images in found if images]
    assert [(look["step"], look["image_url"]["url"][:23]) for [look] in looks] == [
        (3, "data:image/jpeg;base64,"),
        (6, "data:image/jpeg;base64,"),
    ]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,") and picture.get("step") is None


def test_a_streamed_answer_may_start_from_a_picture_and_the_official_client_sends_it(server: Running) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (64, 64), "red"), "JPEG")}}
    with server.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [*ASKED_PARTS, image]}],  # type: ignore[list-item, misc]
            stream=True,
        )
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(server.workers.started[-1].images) == 1


@pytest.mark.parametrize(
    ("image", "code", "field"),
    [
        ({"url": "data:image/png;base64,iVBORw0KGgo="}, "invalid_image", ".image_url"),
        ({"url": "data:image/png;base64,iVBORw0KGgo"}, "invalid_image", ".image_url"),
        ({"url": "data:image/svg+xml;base64,PHN2Zy8+"}, "invalid_image", ".image_url"),
        ({"url": "http://169.254.169.254/"}, "url_not_allowed", ".image_url"),
        ({"url": "file:///etc/passwd"}, "url_not_allowed", ".image_url"),
        ({"url": ""}, "url_not_allowed", ".image_url"),
        ({}, "invalid_value", ".image_url"),
        ("data:", "invalid_value", ".image_url"),
        ({"url": "data:", "detail": "utmost"}, "invalid_value", ".image_url"),
        ({"url": "data:", "path": "x"}, "unknown_parameter", ".image_url"),
    ],
)
def test_a_picture_that_cannot_be_read_is_refused(server: Running, image: Any, code: str, field: str) -> None:
    before = len(server.workers.started)
    parts = [*ASKED_PARTS, {"type": "image_url", "image_url": image}]
    error = post(server, messages=[{"role": "user", "content": parts}]).json()["error"]
    assert (error["code"], error["param"]) == (code, f"messages[0].content[1]{field}")
    assert len(server.workers.started) == before


def test_pictures_are_refused_by_a_model_of_text_and_too_many_by_any(server: Running, tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (8, 8)), "PNG")}}
    asked = [{"role": "user", "content": [*ASKED_PARTS, image, image]}]
    error = post(server, messages=asked).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "messages[0].content[2].image_url")
    assert "at most 1" in error["message"]
    door = shapes()
    blind = replace(door, spec=replace(door.spec, tasks=("text-to-image",)), limits=replace(door.limits, max_images=0))
    with picture_server(tmp_path, door=blind) as other:
        error = post(other, messages=asked).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_task", "messages[0].content[1]")
        assert "text only" in error["message"]


def styles(message: dict[str, Any]) -> set[str]:
    """Where the pictures of a message are."""
    content = message.get("content")
    found = {"images"} if message.get("images") else set()
    if isinstance(content, list):
        found.add("parts")
    return found | ({"markdown"} if isinstance(content, str) and content.startswith("![seed ") else set())


def test_each_request_chooses_where_its_pictures_are(server: Running, compatible: Running) -> None:
    def asked(running: Running, style: str | None = None, **body: Any) -> dict[str, Any]:
        headers = {} if style is None else {"x-omnimuse-pictures": style}
        url, fields = f"{running.url}/v1/chat/completions", {"messages": ASKED, "seed": 7, **body}
        whole = httpx2.post(url, json=fields, headers=headers, timeout=30).json()["choices"][0]["message"]
        text = httpx2.post(url, json={**fields, "stream": True}, headers=headers, timeout=30).text
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        [delta] = [chunk["choices"][0]["delta"] for chunk in chunks if styles(chunk["choices"][0]["delta"])]
        assert styles(delta) == styles(whole)
        return whole

    assert styles(asked(server)) == {"images", "markdown"}, "a client that names no modalities may show text only"
    assert styles(asked(server, modalities=["image", "text"])) == {"images"}
    assert styles(asked(compatible, modalities=["image"])) == {"parts"}
    for style in ("images", "parts", "markdown"):
        for running in (server, compatible):
            assert styles(asked(running, style)) == {style}
    written = asked(server, "markdown")["content"]
    assert picture({"image_url": {"url": written.removeprefix("![seed 7](").removesuffix(")")}}).size == (128, 128)
    refused = httpx2.post(
        f"{server.url}/v1/chat/completions", json={"messages": ASKED}, headers={"x-omnimuse-pictures": "svg"}
    ).json()["error"]
    assert (refused["code"], refused["param"]) == ("invalid_value", "x-omnimuse-pictures")
    assert "images, parts, markdown" in refused["message"]


@pytest.mark.parametrize("style", ["images", "parts", "markdown"])
def test_make_it_blue_starts_from_the_picture_that_was_drawn_before(server: Running, style: str) -> None:
    def said(*messages: dict[str, Any]) -> httpx2.Response:
        url, body = f"{server.url}/v1/chat/completions", {"messages": list(messages), "seed": 200}
        return httpx2.post(url, json=body, headers={"x-omnimuse-pictures": style}, timeout=30)

    first = said(*ASKED).json()["choices"][0]["message"]
    answer = said(*ASKED, first, {"role": "user", "content": "make it blue"})
    request = server.workers.started[-1]
    assert request.prompt == "make it blue"
    [seen] = request.images
    assert (pixels_of(seen) == (200, 0, 99)).all() and (seen.width, seen.height) == (128, 128)
    [warning] = answer.json()["warnings"]
    assert "began with the picture in messages[1]" in warning
    assert json.loads(answer.headers["x-warnings"]) == [warning]


def test_a_conversation_in_markdown_may_hold_more_pictures_than_other_text(server: Running) -> None:
    pictures = [data_url(noise(700, 500), "PNG"), data_url(noise(600, 600), "PNG")]
    assert sum(map(len, pictures)) > 2 * 2**20
    shown = [{"role": "assistant", "content": f"here: ![a picture]({url})"} for url in pictures]
    answer = post(server, messages=[ASKED[0], shown[0], ASKED[0], shown[1], {"role": "user", "content": "blue"}])
    assert answer.status_code == 200, answer.text
    [seen] = server.workers.started[-1].images
    assert (seen.width, seen.height) == (600, 600)


def test_the_last_picture_of_earlier_turns_counts_and_one_of_the_last_message_more(server: Running) -> None:
    def part(colour: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (32, 32), colour), "PNG")}}

    def user(*pictures: dict[str, Any]) -> dict[str, Any]:
        return {"role": "user", "content": [*ASKED_PARTS, *pictures]}

    drawn = {"role": "assistant", "content": None, "images": [part("lime")]}
    for messages, colour in (
        ([user(part("red")), drawn, user()], (0, 255, 0)),
        ([drawn, user(part("red")), {"role": "assistant", "content": "which?"}, user()], (255, 0, 0)),
        ([user(part("red")), drawn, user(part("blue"))], (0, 0, 255)),
    ):
        assert post(server, messages=messages).status_code == 200
        assert (pixels_of(server.workers.started[-1].images[0]) == colour).all()


def test_fields_about_text_that_ask_for_nothing_are_accepted(server: Running) -> None:
    for harmless in (
        {"temperature": 1.0, "top_p": 1, "max_tokens": 512, "tools": [], "store": False, "logprobs": False},
        {"temperature": 0.7, "presence_penalty": 0, "frequency_penalty": 0.0, "stop": None, "user": "u", "n": 1},
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "skip_special_tokens": True},
        {"stop": [], "logit_bias": {}, "metadata": {}, "tool_choice": "auto", "reasoning_effort": "none"},
    ):
        answer = post(server, **harmless)
        assert answer.status_code == 200, (harmless, answer.text)


def test_the_official_client_learns_why(server: Running) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASKED, modalities=["text", "audio"])  # type: ignore[arg-type]
    assert caught.value.code == "unsupported_parameter"


def test_a_chat_keeps_nothing_that_an_idempotency_key_could_stand_for_and_says_so(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "a star"}]}
    answer = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={"idempotency-key": "k"}, timeout=30)
    told = answer.json()["error"]
    assert (answer.status_code, told["code"], told["param"]) == (400, "unsupported_parameter", "idempotency-key")
