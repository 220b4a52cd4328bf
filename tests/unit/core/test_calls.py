"""Calls of tools: taken out of a text that comes in pieces, and refused where they are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omnimuse.core.calls import Splitter, begun_of, calls_of, tools_of
from omnimuse.core.errors import RequestError
from omnimuse.core.messages import Message, messages_of
from omnimuse.core.params import DiffusionParams, GenerationParams
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, Submit, encode, pack, read_command, unpack
from omnimuse.models import REGISTRY
from tests.checkpoints.calling import LOOK

TEXTS: tuple[tuple[str, str, list[tuple[str, Any]], int], ...] = (
    ("a text \n", "a text \n", [], 0),
    ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", {"a": 1})], 0),
    ('now \n\n<tool_call>{"name": "f"}</tool_call>\n', "now", [("f", {})], 0),
    (
        'a\n<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n b',
        "a\nb",
        [("f", {}), ("g", {})],
        0,
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> <tool_call>"}}</tool_call>b',
        "b",
        [("f", {"a": "</tool_call> <tool_call>"})],
        0,
    ),
    ('<tool_call>{"name": "f", "arguments": {}}', "", [("f", {})], 0),
    ("1 < 2, a <tool_cal", "1 < 2, a <tool_cal", [], 0),
    ('a <tool_call>{"name": 3}</tool_call> b', 'a <tool_call>{"name": 3}</tool_call> b', [], 1),
    ("<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", [], 1),
    (
        '<tool_call>{"name": "f", "arguments": NaN}</tool_call>',
        '<tool_call>{"name": "f", "arguments": NaN}</tool_call>',
        [],
        1,
    ),
    ('b <tool_call>{"name": "f', 'b <tool_call>{"name": "f', [], 1),
    (
        '<tool_call>{"name: "f"}</tool_call><tool_call>{"name": "g"}</tool_call>',
        '<tool_call>{"name: "f"}</tool_call>',
        [("g", {})],
        1,
    ),
)


@pytest.mark.parametrize(("text", "told", "calls", "lost"), TEXTS)
def test_calls_are_taken_out_however_a_text_is_cut(text: str, told: str, calls: list[Any], lost: int) -> None:
    for size in (1, 2, 3, 7, 11, len(text)):
        taking = Splitter("x")
        pieces = [each for at in range(0, len(text), size) for each in taking.add(text[at : at + size])]
        pieces += taking.end()
        assert "".join(each for each in pieces if isinstance(each, str)) == told
        assert [each for each in pieces if not isinstance(each, str)] == taking.calls
        assert [(call.name, json.loads(call.arguments)) for call in taking.calls] == calls
        assert taking.lost == lost
    assert len({call.id for call in taking.calls}) == len(calls)


def test_a_text_is_told_at_once_and_what_may_be_a_call_is_held_back() -> None:
    taking = Splitter("x", most=1)
    assert taking.add("a word, ") == ["a word,"]
    assert taking.add("and <tool") == [" and"]
    assert taking.add("box") == [" <toolbox"]
    assert taking.add('\n<tool_call>{"name": "f"}</tool') == []
    [call] = taking.add("_call>")
    assert not isinstance(call, str) and (call.name, call.arguments) == ("f", "{}")
    assert taking.add('<tool_call>{"name": "g"}</tool_call>') == [], "one is enough"
    assert taking.calls == [call]


def test_ends_of_a_call_within_its_texts_are_tried_so_often_only() -> None:
    taking = Splitter("x")
    told = taking.rest('<tool_call>{"name": "' + "</tool_call>" * 50)
    assert taking.lost and told.endswith("</tool_call>" * 50) and not taking.calls


MADE = {"id": "a", "function": {"name": "look_up", "arguments": '{"word": "heron"}'}}
TALK = [
    {"role": "user", "content": "a heron?"},
    {"role": "assistant", "content": None, "tool_calls": [MADE]},
    {"role": "tool", "tool_call_id": "a", "content": "a bird"},
]


def test_a_conversation_with_calls_is_the_same_for_a_template_and_for_a_worker() -> None:
    messages = messages_of({"messages": TALK}, "tiny", True, True)
    function = {"name": "look_up", "arguments": {"word": "heron"}}
    assert messages[1].said["tool_calls"] == [{"id": "a", "type": "function", "function": function}]
    assert messages[2].said == {"role": "tool", "content": "a bird", "tool_call_id": "a"}
    assert messages_of({"messages": messages}, "tiny", True, True) == messages
    tools = tools_of({"messages": TALK, "tools": [LOOK]}, True)
    assert [tool.said for tool in tools] == [LOOK]
    known: Any = {"messages": messages, "tools": tools, "begun": "<tool_call>"}
    request = Request("a" * 32, "a bird", None, DiffusionParams(seed=1), GenerationParams(), **known)
    sent = read_command(encode(Submit(pack(request), Form("TEXT"))))
    assert isinstance(sent, Submit)
    assert unpack(sent.request, REGISTRY.spec("Qwen3ForCausalLM")) == request


@pytest.mark.parametrize(
    ("prompt", "able", "says"),
    [
        ({"messages": TALK, "tools": [LOOK]}, False, "tools mean nothing here: this model calls no tools"),
        ({"prompt": "a", "tools": [LOOK]}, True, "tools are called in a conversation"),
        ({"messages": TALK, "tools": [{**LOOK, "cost": 3}]}, True, r"tools\[0\] must be"),
        ({"messages": TALK, "tools": [{"type": "function", "function": {"name": "f", "parameters": {1j: 2}}}]}, True,
         r"tools\[0\].function holds what JSON cannot say"),
        ({"messages": TALK, "tools": [{"type": "function", "function": {"name": "f", "description": "\ud800"}}]}, True,
         "half a surrogate pair"),
    ],
)  # fmt: skip
def test_what_is_no_tool_is_refused(prompt: dict[str, Any], able: bool, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        tools_of(prompt, able)


@pytest.mark.parametrize(
    ("message", "able", "says"),
    [
        (TALK[1], False, r"messages\[0\] is about a tool, and this model calls no tools"),
        (TALK[2], True, "tool_call_id='a' answers nothing"),
        ({"role": "user", "content": "a", "tool_calls": [MADE]}, True, "a role and a content, and nothing else"),
        ({"role": "assistant", "content": None}, True, "content of messages"),
        ({"role": "assistant", "content": "", "tool_calls": [MADE] * 129}, True, "at most 128 calls"),
        ({"role": "tool", "content": "a"}, True, "tool_call_id must be the name of a call"),
    ],
)
def test_messages_of_calls_that_cannot_be_are_refused(message: dict[str, Any], able: bool, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        messages_of({"messages": [message]}, "tiny", True, able)


def test_a_call_of_ours_is_one_again() -> None:
    [call] = calls_of([MADE], "calls")
    assert calls_of([call], "calls") == (call,) == calls_of([call.said], "calls")
    assert Message("assistant", "", calls=(call,)).texts == ("", '{"word": "heron"}')


@pytest.mark.parametrize(
    ("choice", "begun"),
    [
        (None, ""),
        ("auto", ""),
        ("none", ""),
        ("required", '<tool_call>\n{"name": "'),
        ({"type": "function", "function": {"name": "look_up"}}, '<tool_call>\n{"name": "look_up", "arguments":'),
    ],
)
def test_an_answer_that_must_be_a_call_has_begun_as_one(choice: Any, begun: str) -> None:
    assert begun_of({"tool_choice": choice}, tools_of({"messages": TALK, "tools": [LOOK]}, True)) == begun
