"""A model that writes, behind the server: the official client, streams, what is refused, and who goes away."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import openai
import pytest

from omnimuse import Omni
from omnimuse.core.errors import WorkerLostError
from omnimuse.deploy.wire import Spelt
from omnimuse.server.routes.talk import Told
from tests.checkpoints import qwen3
from tests.checkpoints.adapters import layers_telling, peft, write
from tests.server.asgi import call, scope
from tests.server.bench import measured
from tests.server.browser import browser_only, browsing, expect, opened
from tests.server.fake_workers import WORDS, FakeWorkers
from tests.server.picture_server import picture_server, service_in, writer
from tests.server.pooled import client_of
from tests.server.whole_server import WholeServer

SAID = [{"role": "system", "content": "be short"}, {"role": "user", "content": "a green star"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.build(tmp_path_factory.mktemp("talk") / "tiny")


@pytest.fixture(scope="module")
def ink(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that requests may name."""
    home = tmp_path_factory.mktemp("adapters")
    return write(home / "ink.safetensors", layers_telling(folder), peft("base_model.model."))


@pytest.fixture(scope="module")
def server(folder: Path, ink: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    options = ("--dtype", "float32", "--device", "cpu", "--lora-dir", str(ink.parent))
    with WholeServer(tmp_path_factory.mktemp("talking"), str(folder), *options) as made:
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def client(server: WholeServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


@pytest.fixture(scope="module")
def omni(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), dtype="float32", device="cpu") as made:
        yield made


def written(omni: Omni, prompt: Any, seed: int = 0, **choices: Any) -> str:
    [result] = omni.generate([prompt], seed=seed, progress=False, **choices)
    return result.text


def test_the_official_client_has_a_talk_as_from_python(client: openai.OpenAI, omni: Omni) -> None:
    answer = client.chat.completions.create(model="default", messages=SAID, temperature=0, max_completion_tokens=12)  # type: ignore[arg-type]
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == written(omni, SAID, **GREEDY)
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.prompt_tokens


def test_an_adapter_is_worn_by_the_answer_that_names_it(client: openai.OpenAI, omni: Omni, ink: Path) -> None:
    said: dict[str, Any] = {"model": "default", "messages": SAID, "temperature": 0, "max_tokens": 12}
    bare, found = (
        client.chat.completions.create(**said, extra_body=more).choices[0].message.content
        for more in ({}, {"lora": "ink:0.8"})
    )
    assert found == written(omni, SAID, loras=[f"{ink}:0.8"], **GREEDY)
    assert found != bare


def test_a_stream_has_the_role_pieces_the_reason_and_the_usage(client: openai.OpenAI, omni: Omni) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=SAID,  # type: ignore[arg-type]
        n=2,
        seed=5,
        max_tokens=60,
        temperature=0.8,
        top_p=0.9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    pieces: dict[int, list[str]] = {0: [], 1: []}
    ends = {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        pieces[choice.index].append(choice.delta.content or "")
        assert choice.index not in ends, "nothing comes after the end"
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    for index, parts in pieces.items():
        assert "".join(parts) == written(omni, SAID, 5 + index, max_tokens=60, temperature=0.8, top_p=0.9)
        assert sum(map(bool, parts)) > 3, "it comes in pieces"
    assert set(ends) == {0, 1}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 120


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize(
    ("path", "said"), [("/v1/chat/completions", {"messages": SAID}), ("/v1/completions", {"prompt": "a green star"})]
)
def test_an_answer_and_the_last_piece_of_a_stream_tell_what_every_block_took(
    server: WholeServer, path: str, said: dict[str, Any], usage: bool
) -> None:
    asked = {**said, **GREEDY, "n": 2, "block_timings": True}
    whole = server.ask(path, asked).json
    options = {"stream_options": {"include_usage": True}} if usage else {}
    lines = server.ask(path, {**asked, "stream": True, **options}).content.decode().splitlines()
    pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert whole["block_timings"].keys() == pieces[-1]["block_timings"].keys() >= {"model.layers.0", "model.layers.1"}
    assert all(seconds > 0 for seconds in whole["block_timings"].values())
    assert whole["timings"].keys() == pieces[-1]["timings"].keys()
    assert not any("block_timings" in piece for piece in pieces[:-1])
    for told in (whole, pieces[-1]):
        assert told["block_bytes"].keys() == told["block_timings"].keys()
        assert len(told["steps"]["generate"]) == len(told["bytes"]["generate"]) == GREEDY["max_tokens"]
    assert not {"block_timings", "block_bytes", "steps", "bytes"} & server.ask(path, {**said, **GREEDY}).json.keys()


@pytest.mark.parametrize("stream", [False, True])
def test_a_bench_of_answers_counts_those_that_came_and_tells_where_their_time_went(
    server: WholeServer, stream: bool
) -> None:
    words = ["--task", "chat", "--tokens", "5", "--requests", "3", "--blocks", *(["--stream"] if stream else [])]
    figures = measured(server.url, *words)
    assert (figures["sent"], figures["ok"], figures["first_preview"]["count"]) == (3, 3, 3 * stream)
    assert figures["stages"]["generate"]["count"] == figures["blocks"]["model.layers.0"]["count"] == 3
    assert figures["steps"]["generate"]["count"] == 3 * 5
    assert min(figures["bytes"][name] for name in ("generate", "model.layers.0")) > 2**20


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(client: openai.OpenAI, omni: Omni) -> None:
    whole = written(omni, SAID, **GREEDY)
    stop = whole[len(whole) // 2 :][:3]
    answer = client.chat.completions.create(model="", messages=SAID, stop=stop, **GREEDY)  # type: ignore[arg-type]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


def test_usage_and_metrics_tell_what_had_been_read_before(client: openai.OpenAI, server: WholeServer) -> None:
    prompt = "one two three " * 60
    for read_before in (False, True):
        usage = client.completions.create(model="default", prompt=prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        assert bool(usage.prompt_tokens_details.cached_tokens) is read_before
    assert re.search(rb'omnimuse_text_tokens_total\{kind="reused"\} [1-9]', server.ask("/metrics").content)


def test_a_text_goes_on_at_completions_whole_and_in_pieces(client: openai.OpenAI, omni: Omni) -> None:
    expected = written(omni, "a red circle on a", **GREEDY)
    whole = client.completions.create(model="default", prompt="a red circle on a", **GREEDY)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "length")
    pieces = list(client.completions.create(model="default", prompt=["a red circle on a"], stream=True, **GREEDY))
    assert "".join(piece.choices[0].text for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "length"


def test_a_stream_ends_with_done_and_parts_of_a_message_are_one_text(server: WholeServer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "star"}]
    body = {"messages": [{"role": "user", "content": parts, "name": None}], "stream": True, "max_tokens": 2}
    answer = server.ask("/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"data: [DONE]\n\n")


def test_the_list_of_models_says_that_it_writes(server: WholeServer) -> None:
    [model] = server.ask("/v1/models").json["data"]
    assert model["max_model_len"] == qwen3.LONGEST
    assert (model["capabilities"]["medium"], model["capabilities"]["tasks"]) == ("text", ["text-to-text"])
    assert not {"cache", "width"} & set(model["capabilities"]["parameters"])
    assert model["capabilities"]["adapters"] == ["ink"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "missing_parameter", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unsupported_parameter", "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "unsupported_parameter", "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "unsupported_task",
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "invalid_value", "messages"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"frequency_penalty": 1}, "unsupported_parameter", "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
        ({"lora": "x"}, "invalid_value", "lora"),
        ({"cache": "fast"}, "unsupported_parameter", "cache"),
        ({"stop": [""]}, "invalid_value", "stop"),
        ({"stop": ["x"] * 17}, "invalid_value", "stop"),
        ({"temperature": -1}, "invalid_value", "temperature"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 2048}, "invalid_value", "max_completion_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "conflicting_parameters", "max_completion_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "invalid_value", "min_tokens"),
        ({"n": 11}, "invalid_value", "n"),
        ({"max_tokns": 5}, "unknown_parameter", "max_tokns"),
        ({"num_inference_steps": 5}, "unsupported_parameter", "num_inference_steps"),
        ({"stream_options": {"include_usage": True}}, "conflicting_parameters", "stream_options"),
        ({"model": "gpt-5"}, "model_not_found", "model"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(
    server: WholeServer, body: dict[str, Any], code: str, param: str | None
) -> None:
    answer = server.ask("/v1/chat/completions", {"messages": SAID, **body})
    assert (answer.json["error"]["code"], answer.json["error"]["param"]) == (code, param), answer.json


def test_what_asks_for_nothing_is_taken(server: WholeServer) -> None:
    idle = {"tools": [], "tool_choice": "auto", "logprobs": False, "frequency_penalty": 0, "top_k": -1, "user": "x"}
    assert server.ask("/v1/chat/completions", {"messages": SAID, "max_tokens": 1, **idle}).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_bad_request_also_in_a_stream(server: WholeServer, stream: bool) -> None:
    said = [{"role": "user", "content": "one two three " * 1000}]
    answer = server.ask("/v1/chat/completions", {"messages": said, "stream": stream})
    assert answer.status == 400
    assert "this model reads and writes 2048 in all" in answer.json["error"]["message"]


def test_paths_of_pictures_say_what_this_model_does(server: WholeServer) -> None:
    answer = server.draw()
    assert answer.status == 404
    assert "does text-to-text (POST /v1/chat/completions)" in answer.json["error"]["message"]


def test_who_goes_in_the_middle_of_a_stream_ends_the_work(server: WholeServer) -> None:
    body = {"messages": SAID, "stream": True, "max_tokens": 2000, "min_tokens": 2000}
    with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        next(line for line in answer.iter_lines() if '"content":"' in line and "role" not in line)
    for _ in range(200):
        if server.ask("/load").json["requests"] == 0:
            break
        time.sleep(0.05)
    assert server.ask("/load").json["requests"] == 0
    assert re.search(rb'cancelled_total\{[^}]*"running"[^}]*\} 1', server.ask("/metrics").content)


def test_what_is_asked_is_described(server: WholeServer) -> None:
    described = server.ask("/openapi.json").json
    assert {"/v1/chat/completions", "/v1/completions"} <= set(described["paths"])
    assert "temperature" in json.dumps(described["components"]["schemas"]["TalkRequest"])


# -- with workers that are fakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unheard", [set[int](), {1}, {0, 2}])
def test_pieces_that_a_slow_reader_missed_come_with_the_last_one(tmp_path: Path, unheard: set[int]) -> None:
    body = json.dumps({"messages": SAID, "stream": True, "n": 2}).encode()

    async def main() -> bytes:
        async with service_in(tmp_path, door=writer()) as (app, service):
            cast(FakeWorkers, service.workers).unheard = unheard
            head = scope("POST", "/v1/chat/completions", {"content-type": "application/json"})
            return (await call(app, head, [body])).content

    lines = [json.loads(line[6:]) for line in asyncio.run(main()).decode().splitlines() if line.startswith("data: {")]
    choices = [choice for line in lines for choice in line["choices"]]
    for index in range(2):
        told = [choice["delta"].get("content", "") for choice in choices if choice["index"] == index]
        assert "".join(told) == "".join(WORDS)


def test_what_is_written_anew_after_a_lost_worker_is_told_once_and_must_be_the_same() -> None:
    told = Told()
    assert told.new(Spelt("r", 0, 0, "a red ")) == "a red "
    assert told.new(Spelt("r", 0, 0, "a ")) == ""
    assert told.new(Spelt("r", 0, 2, "red circle")) == "circle"
    assert told.rest(0, "a red circle.") == "."
    with pytest.raises(WorkerLostError, match="written anew the answer is another"):
        told.rest(0, "a blue circle")


@browser_only
def test_the_page_is_a_talk_in_which_every_answer_knows_what_was_said(tmp_path: Path) -> None:
    with picture_server(tmp_path, door=writer()) as running:
        with browsing() as browser, opened(browser, running.url) as page:
            for question in ("hello", "and now?"):
                page.get_by_label("Say something").fill(question)
                page.get_by_label("Say something").press("Enter")
                page.locator("#said li").last.get_by_text("".join(WORDS)).wait_for()
            expect(page.locator("#said li")).to_have_text(["hello", "a red circle", "and now?", "a red circle"])
            expect(page.locator("#prompt")).to_be_hidden()
        roles = [(message.role, message.content) for message in running.workers.started[-1].messages]
        assert roles == [("user", "hello"), ("assistant", "a red circle"), ("user", "and now?")]
