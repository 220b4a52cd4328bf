"""Chat templates are programs of strangers: what they write is as in transformers, and what they waste is bounded."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.chat import Chat, plain_template
from omnimuse.loader.template import MOST, environment
from tests.checkpoints.parts import QWEN_CHAT
from tests.processes import children

VALUES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a red circle"}],
    "tools": None,
    "add_generation_prompt": True,
    "enable_thinking": True,
}

PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m['content'] | trim }}{% endfor %}",
    "{{ messages[0].content ~ '!' }}{% if tools is none and not x %}{{ eos_token }}{% endif %}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index }}{% if loop.first %}{% break %}{% endif %}{% endfor %}",
)

COSTLY = {
    "a loop in loops": "{% for a in m %}" * 9 + "x" + "{% endfor %}" * 9,
    "text times a billion": "{{ 'a' * 1000000000 }}",
    "a power": "{{ (9 ** 9999) ** 9999 }}",
    "a sum of itself": "{% set a = messages | string %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
    "a wide field": "{{ '%999999999d' % 1 }}",
    "another wide field": "{{ '{:>999999999}'.format(1) }}",
    "a filter that fills up": "{{ 'a' | center(999999999) }}",
    "a function that calls itself": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a little too much text": "{% for a in range(90000) %}" + "x" * 40 + "{% endfor %}",
}


@pytest.mark.parametrize("source", PLAIN)
def test_a_template_that_only_joins_is_rendered_here(source: str) -> None:
    assert plain_template(source)
    before = children(os.getpid())
    text = Chat(source, "x").render(VALUES)
    assert text == environment().from_string(source).render(VALUES) and children(os.getpid()) == before


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize("source", COSTLY.values(), ids=COSTLY)
def test_a_template_that_wastes_time_or_memory_is_ended_and_the_next_text_is_written(source: str) -> None:
    assert plain_template(source) is None
    values = {**VALUES, "m": "m" * 99}
    chat = Chat(source, "the checkpoint", seconds=0.5)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"the chat template of the checkpoint .*use another checkpoint"):
            chat.render(values)


@pytest.mark.parametrize(
    "source",
    [
        QWEN_CHAT,
        "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{% endfor %}",
        "{% for m in messages %}{{ m.content.split('r')[-1].lstrip() }}{{ m | tojson }}{% endfor %}",
        "{% generation %}{{ messages[0].content | length }}{% endgeneration %}",
        "{% macro say(x) %}[{{ x | upper }}]{% endmacro %}{{ say(messages[0]['role']) }}",
    ],
)
def test_a_process_writes_what_is_written_here_again_and_again(source: str) -> None:
    chat = Chat(source, "x")
    expected = environment().from_string(source).render(VALUES)
    assert [chat.render(VALUES) for _ in range(3)] == [expected] * 3
    long = {**VALUES, "messages": [{"role": "user", "content": "schön 🟥 " * 1000}]}
    assert chat.render(long) == environment().from_string(source).render(long)


def test_what_a_template_raises_is_told() -> None:
    with pytest.raises(ModelError, match="no system role"):
        Chat("{{ raise_exception('no system role') }}", "x").render(VALUES)
    with pytest.raises(ModelError, match="SecurityError"):
        Chat("{{ messages.__class__.__mro__[1].__subclasses__() }}", "x").render(VALUES)
    with pytest.raises(ModelError, match="SecurityError"):
        Chat("{% set a = messages.append(1) %}", "x").render(VALUES)
    with pytest.raises(ModelError, match=f"at most {MOST} are allowed"):
        Chat("{% for a in range(90000) %}" + "x" * 40 + "{% endfor %}", "x").render(VALUES)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "RecursionError|ended the process"),
        ("{% if a %}" * 120 + "{% endif %}" * 120, "IndentationError|SyntaxError"),
        ("{{ " + "a + " * 9_000 + "a }}", "RecursionError|ended the process"),
    ],
    ids=["wrong", "deep", "nested", "long"],
)
def test_a_template_that_cannot_be_parsed_is_told(source: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Chat(source, "x").render(VALUES)


def test_the_process_that_renders_is_locked_in_and_ends_with_its_chat() -> None:
    before = set(children(os.getpid()))
    chat = Chat(QWEN_CHAT + "{% set a = 1 %}", "x")
    chat.render(VALUES)
    [process] = set(children(os.getpid())) - before
    status = Path(f"/proc/{process}/status")
    if status.exists():
        said = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    os.kill(process, 9)
    assert chat.render(VALUES), "one that died meanwhile is replaced"
    del chat
    gc.collect()
    assert set(children(os.getpid())) <= before
