"""Tools, and models that see, hear and answer aloud: called where the template tells of them, refused elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.checkpoints import calling, qwen3_omni, qwen25_omni
from tests.checkpoints.wishes import photo
from tests.server.pooled import asked_by_client
from tests.unit.media.hostile import encoded

pytestmark = pytest.mark.costly("calling over HTTP", turns=3)

MODELS = [
    pytest.param(qwen3_omni, id="3"),
    pytest.param(qwen25_omni, id="2.5", marks=pytest.mark.costly("calling 2.5")),
]
SEEN = f"data:image/png;base64,{base64.b64encode(encoded(photo(40, 24), 'PNG')).decode()}"
ASKED: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": SEEN}}, {"type": "text", "text": "what is this?"}],
    }
]
CALLS = [("look_up", {"word": "heron"}), ("count", {"upto": 3})]
FAMILIES = ["Qwen3OmniMoeForConditionalGeneration", "Qwen2_5OmniForConditionalGeneration"]
NAMED: Any = {"type": "function", "function": {"name": "look_up"}}


@pytest.fixture(scope="module", params=MODELS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    home = tmp_path_factory.mktemp("calling")
    with asked_by_client(home, calling.build_thinking(home / "tiny", request.param.build)) as made:
        yield made


def made(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


@pytest.mark.shows("text out", "tools", "pictures shown", families=FAMILIES)
def test_an_answer_about_a_picture_asks_for_tools_and_goes_on_with_what_came_of_them(client: openai.OpenAI) -> None:
    ask = partial(client.chat.completions.create, model="default", tools=[calling.LOOK])  # type: ignore[list-item]
    first = ask(messages=ASKED)
    [choice] = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert made(choice.message.tool_calls) == CALLS
    came = [{"role": "tool", "tool_call_id": call.id, "content": "a bird"} for call in choice.message.tool_calls]
    second = ask(messages=[*ASKED, choice.message.model_dump(exclude_none=True), *came]).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", "".join(calling.KNOWS))
    text_alone = ask(messages=[{"role": "user", "content": "what is this?"}])
    assert text_alone.usage.prompt_tokens < first.usage.prompt_tokens, "the picture was read"
    [named] = ask(messages=ASKED, tool_choice=NAMED).choices
    assert made(named.message.tool_calls) == [("look_up", {"word": "stork"})]


@pytest.mark.shows("text out", "sound out", "tools", "pictures shown", families=FAMILIES)
def test_an_answer_aloud_is_said_up_to_its_call(client: openai.OpenAI) -> None:
    create: Any = client.chat.completions.create
    aloud = {"modalities": ["text", "audio"], "audio": {"voice": "chelsie", "format": "wav"}}
    [choice] = create(model="default", messages=ASKED, tools=[calling.LOOK], seed=4, **aloud).choices
    assert made(choice.message.tool_calls) == CALLS
    assert choice.message.audio.transcript == choice.message.content == "Let me see."
    assert len(base64.b64decode(choice.message.audio.data)) > 44
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        create(model="default", messages=ASKED, tools=[calling.LOOK], tool_choice="required", **aloud)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_whose_template_tells_of_no_tools_refuses_them_by_name(model: Any, tmp_path: Path) -> None:
    with asked_by_client(tmp_path / "server", model.build(tmp_path / "tiny")) as client:
        with pytest.raises(openai.BadRequestError, match="this model calls no tools") as caught:
            client.chat.completions.create(model="default", messages=ASKED, tools=[calling.LOOK])  # type: ignore[list-item]
        assert caught.value.param == "tools"
        client.chat.completions.create(model="default", messages=ASKED, max_tokens=2)
