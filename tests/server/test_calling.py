"""Tools, by the official client and a server of a model that asks for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.checkpoints import calling
from tests.server.whole_server import WholeServer

pytest.importorskip("websockets", reason="a server without it has no WebSockets")

ASKED: list[Any] = [{"role": "user", "content": "what is a heron?"}]
CALLS = [("look_up", {"word": "heron"}), ("count", {"upto": 3})]
"""What `calling.ASKS` asks for."""


NAMED = {"type": "function", "function": {"name": "look_up"}}


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


@pytest.mark.shows("tools", families=["Qwen3ForCausalLM"])
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
        ({"tool_choice": NAMED}, "", [("look_up", {"word": "stork"})], "tool_calls"),
    ],
)
def test_who_asks_may_choose_none_or_one_at_a_time_or_which(
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


# -- realtime ------------------------------------------------------------------------------------------------------


FLAT: Any = {"type": "function", **calling.LOOK["function"]}
"""A tool in the words of a session."""


async def until(connection: Any, last: str) -> list[Any]:
    """The events up to one of type `last`."""
    found = [await connection.recv()]
    while found[-1].type != last:
        assert found[-1].type != "error", found[-1]
        found.append(await connection.recv())
    return found


def test_a_response_asks_for_tools_and_the_next_one_knows_what_came_of_it(server: WholeServer) -> None:
    async def main() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            client.realtime.connect(model="default") as connection,
        ):
            await connection.session.update(session={"type": "realtime", "tools": [FLAT], "tool_choice": "auto"})
            assert (await until(connection, "session.updated"))[-1].session.tools[0].name == "look_up"
            item: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a heron?"}]}
            await connection.conversation.item.create(item=item)
            await until(connection, "conversation.item.done")
            await connection.response.create()
            events = await until(connection, "response.done")
            assert (
                "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Let me see."
            )
            done = [event for event in events if event.type == "response.function_call_arguments.done"]
            assert [(event.name, json.loads(event.arguments)) for event in done] == CALLS
            assert [event.delta for event in events if event.type.endswith("arguments.delta")] == [
                event.arguments for event in done
            ]
            said, *calls = events[-1].response.output
            assert (said.type, [call.type for call in calls]) == ("message", ["function_call"] * 2)
            for call in calls:
                output = {"type": "function_call_output", "call_id": call.call_id, "output": "a bird"}
                await connection.conversation.item.create(item=output)
                made = await until(connection, "conversation.item.done")
                assert (made[-1].item.type, made[-1].item.output) == ("function_call_output", "a bird")
            await connection.response.create()
            [told] = (await until(connection, "response.done"))[-1].response.output
            assert told.content[0].text == "".join(calling.KNOWS)
            await connection.conversation.item.delete(item_id=calls[0].id)
            gone = [(await until(connection, "conversation.item.deleted"))[-1].item_id for _ in range(2)]
            assert gone[0] == calls[0].id, "and what answers it goes, too"
            await connection.response.create()
            assert (await until(connection, "response.done"))[-1].response.status == "completed"

    asyncio.run(main())


def test_a_response_tells_what_to_know_of_it_as_other_answers_do(server: WholeServer, client: openai.OpenAI) -> None:
    asked: Any = {"tools": [calling.LOOK], "max_tokens": 9}
    known = client.chat.completions.create(model="default", messages=ASKED, **asked).model_extra or {}
    assert "is no JSON object" in known["warnings"][0], "the call was cut short"

    async def main() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened,
            opened.realtime.connect(model="default") as connection,
        ):
            await connection.session.update(session={"type": "realtime", "tools": [FLAT]})
            item: Any = {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "what is a heron?"}],
            }
            await connection.conversation.item.create(item=item)
            await until(connection, "conversation.item.done")
            for most, expected in ((9, known["warnings"]), (11, None)):
                await connection.response.create(response={"max_output_tokens": most})
                told = (await until(connection, "response.done"))[-1].response
                assert told.model_extra["warnings"] == expected
                await connection.conversation.item.delete(item_id=told.output[0].id)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"type": "session.update", "session": {"tools": "f"}}, "session.tools"),
        ({"type": "session.update", "session": {"tools": [{"type": "function"}]}}, "tools[0].function.name"),
        ({"type": "session.update", "session": {"tool_choice": "required"}}, "tool_choice"),
        ({"type": "session.update", "session": {"parallel_tool_calls": 3}}, "session.parallel_tool_calls"),
        (
            {
                "type": "conversation.item.create",
                "item": {"type": "function_call_output", "call_id": "a", "output": "x"},
            },
            "item.call_id",
        ),
        ({"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "a"}}, "item.output"),
        ({"type": "conversation.item.create", "item": {"type": "function_call"}}, "item[0].function.name"),
    ],
)
def test_what_is_no_tool_in_a_session_is_told_and_ends_nothing(
    server: WholeServer, event: dict[str, Any], param: str
) -> None:
    async def main() -> None:
        async with (
            openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            client.realtime.connect(model="default") as connection,
        ):
            await connection.recv()
            await connection.send(event)  # type: ignore[arg-type]
            told: Any = await connection.recv()
            assert (told.type, told.error.param) == ("error", param), told
            await connection.input_audio_buffer.clear()
            assert (await connection.recv()).type == "input_audio_buffer.cleared"

    asyncio.run(main())
