"""Tools, by the official client and a server of a model that asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.checkpoints import calling
from tests.server.whole_server import WholeServer

ASKED: list[Any] = [{"role": "user", "content": "what is a heron?"}]
CALLS = [("look_up", {"word": "heron"}), ("count", {"upto": 3})]
"""What `calling.ASKS` asks for."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    folder = calling.build(tmp_path_factory.mktemp("calling") / "tiny")
    with WholeServer(tmp_path_factory.mktemp("tools"), str(folder), "--dtype", "float32", "--device", "cpu") as made:
        made.wait_ready()
        yield made


@pytest.fixture(scope="module")
def client(server: WholeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def made(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_an_answer_asks_for_tools_is_told_what_came_of_it_and_goes_on(client: openai.OpenAI) -> None:
    tools: list[Any] = [calling.LOOK]
    first = client.chat.completions.create(model="default", messages=ASKED, tools=tools).choices[0]
    assert (first.finish_reason, first.message.content) == ("tool_calls", "Let me see.")
    assert made(first.message.tool_calls) == CALLS
    assert first.message.tool_calls is not None
    came = [{"role": "tool", "tool_call_id": call.id, "content": "a bird"} for call in first.message.tool_calls]
    talk: list[Any] = [*ASKED, first.message.model_dump(), *came]
    second = client.chat.completions.create(model="default", messages=talk, tools=tools).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", "".join(calling.KNOWS))
    assert second.message.tool_calls is None


def test_a_stream_has_the_text_then_each_call_by_its_number(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=ASKED,
        tools=[calling.LOOK],
        n=2,
        stream=True,  # type: ignore[list-item]
    )
    found: dict[int, dict[int, list[str]]] = {0: {}, 1: {}}
    texts, ends, ids = {0: "", 1: ""}, dict[int, str | None](), set[str]()
    for choice in (choice for chunk in stream for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            parts = found[choice.index].setdefault(call.index, ["", ""])
            assert call.function is not None
            parts[0] += call.function.name or ""
            parts[1] += call.function.arguments or ""
            ids |= {call.id} if call.id else set()
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {0: "Let me see.", 1: "Let me see."}
    for calls in found.values():
        assert [(calls[at][0], json.loads(calls[at][1])) for at in sorted(calls)] == CALLS
    assert ends == {0: "tool_calls", 1: "tool_calls"}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("choice", "text", "calls", "reason"),
    [
        ({"tool_choice": "none"}, "".join(calling.ASKS), [], "stop"),
        ({"parallel_tool_calls": False}, "Let me see.", CALLS[:1], "tool_calls"),
        ({"max_tokens": 11}, "Let me see.", CALLS[:1], "length"),
    ],
)
def test_who_asks_may_choose_none_or_one_at_a_time(
    client: openai.OpenAI, choice: dict[str, Any], text: str, calls: list[Any], reason: str
) -> None:
    asked: Any = {"tools": [calling.LOOK], **choice}
    [found] = client.chat.completions.create(model="default", messages=ASKED, **asked).choices
    assert (found.message.content, made(found.message.tool_calls or []), found.finish_reason) == (text, calls, reason)


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def about(*calls: Any, **answer: Any) -> dict[str, Any]:
    """A conversation in which these calls are made, and answered so."""
    said = {"role": "assistant", "content": None, "tool_calls": list(calls)}
    return {"messages": [*ASKED, said, {"role": "tool", "content": "x", **answer}], "tools": [tool()]}


GOOD = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name"),
        ({"tools": [tool(name="f" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(name="f g")]}, "tools[0].function.name"),
        ({"tools": [tool(parameters="none")]}, "tools[0].function.parameters"),
        ({"tools": [tool(description=3)]}, "tools[0].function.description"),
        ({"tools": [tool(colour="red")]}, "tools[0].function"),
        ({"tools": [tool(name=f"f{number}") for number in range(200)]}, "tools"),
        ({"tools": "f"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": tool(name="g")}, "tool_choice"),
        (about(GOOD, tool_call_id="b"), "messages[2].tool_call_id"),
        (about(GOOD), "messages[2].tool_call_id"),
        (about({**GOOD, "id": None}, tool_call_id="a"), "messages[1].tool_calls[0].id"),
        (about({**GOOD, "function": {"name": "f", "arguments": "{"}}), "messages[1].tool_calls[0].function.arguments"),
        (about({**GOOD, "function": {"name": "", "arguments": "{}"}}), "messages[1].tool_calls[0].function.name"),
    ],
)
def test_what_is_no_tool_and_answers_no_call_is_refused_by_its_name(
    server: WholeServer, body: dict[str, Any], param: str
) -> None:
    answer = server.ask("/v1/chat/completions", {"messages": ASKED, **body})
    assert (answer.status, answer.json["error"]["param"]) == (400, param), answer.json
