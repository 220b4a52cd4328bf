"""Messages that show something: how they are read, told to a worker, and refused."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.messages import Message, check_shown, messages_of, tokens_of
from omnimuse.core.params import AnswerParams, DiffusionParams, GenerationParams, WatchParams, family_params
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, Submit, encode, read_command, unpack
from omnimuse.deploy.wire import pack as packed
from omnimuse.models import REGISTRY

ARCH = "Qwen3OmniMoeForConditionalGeneration"
SEEN = Message("user", "look\nand say", (("text", "look"), ("image", ""), ("text", "and say")))


def test_a_message_of_parts_has_its_texts_and_says_what_it_shows_where() -> None:
    content = [{"type": "text", "text": "look"}, {"type": "image"}, {"type": "text", "text": "and say"}]
    [found] = messages_of({"messages": [{"role": "user", "content": content}]}, "tiny", True)
    assert found == SEEN
    assert found.said == {"role": "user", "content": content}
    assert Message("user", "a").said == {"role": "user", "content": "a"}
    plain = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert messages_of({"messages": plain}, "tiny", True) == (Message("user", "a\nb"),)
    assert messages_of({"messages": [found]}, "tiny", True) == (found,)


def test_what_messages_show_and_what_came_must_be_as_many() -> None:
    check_shown((SEEN,), {"images": 1, "sounds": 0, "videos": 0})
    check_shown((), {"images": 3, "sounds": 0, "videos": 0})
    with pytest.raises(RequestError, match="show 1 of images, and 2 came"):
        check_shown((SEEN,), {"images": 2, "sounds": 0, "videos": 0})
    with pytest.raises(RequestError, match="show 0 of sounds, and 1 came"):
        check_shown((SEEN,), {"images": 1, "sounds": 1, "videos": 0})


def test_what_a_message_shows_is_the_same_for_a_worker() -> None:
    extra, params = WatchParams(modalities=("text", "audio")), DiffusionParams(seed=1)
    request = Request("a" * 32, "look\nand say", None, params, extra, messages=(SEEN, Message("assistant", "yes")))
    sent = read_command(encode(Submit(packed(request), Form("WAV"))))
    assert isinstance(sent, Submit)
    assert unpack(sent.request, REGISTRY.spec(ARCH)) == request


@pytest.mark.parametrize(
    ("prompt", "writes", "says"),
    [
        ({"tokens": [1]}, False, "tokens mean nothing to tiny, which reads texts"),
        ({"tokens": [1], "prompt": "a"}, True, "tokens were given beside a text"),
        ({"tokens": [1], "messages": [{"role": "user", "content": "a"}]}, True, "tokens were given beside a text"),
        ({"tokens": "12"}, True, "a list of at least one whole number"),
        ({"tokens": []}, True, "a list of at least one whole number"),
        ({"tokens": [1, -1]}, True, "none of them below 0"),
        ({"tokens": [True]}, True, "a list of at least one whole number"),
        ({"tokens": [1] * 8}, True, "there are 8 tokens; this model reads and writes 8 in all: give fewer"),
    ],
)
def test_tokens_that_cannot_be_read_are_refused(prompt: dict[str, Any], writes: bool, says: str) -> None:
    assert tokens_of({"tokens": [0, 7]}, "tiny", True, 8) == (0, 7)
    with pytest.raises(RequestError, match=says):
        tokens_of(prompt, "tiny", writes, 8)


def test_tokens_are_the_same_for_a_worker() -> None:
    request = Request("a" * 32, "", None, DiffusionParams(seed=1), WatchParams(), tokens=(3, 1, 2))
    sent = read_command(encode(Submit(packed(request), Form("WAV"))))
    assert isinstance(sent, Submit)
    assert unpack(sent.request, REGISTRY.spec(ARCH)) == request


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"modalities": ("image",)}, 'use ["text"] or ["text", "audio"]'),
        ({"voice": "ethan"}, "no sound is wanted"),
        ({"voice_temperature": 0.5}, "no sound is wanted"),
        ({"modalities": ("text", "audio"), "voice": "ethan"}, None),
        ({"stop": ("",)}, "an empty text"),
    ],
)
def test_choices_of_a_spoken_answer_fit_together(chosen: dict[str, Any], says: str | None) -> None:
    found = AnswerParams(**chosen).objection(DiffusionParams(), 1)
    assert found is None if says is None else says in str(found)


def test_choices_for_any_model_that_writes_do_for_one_that_speaks_as_well() -> None:
    assert family_params(AnswerParams, GenerationParams(top_k=3)) == AnswerParams(top_k=3)
