"""What is chosen in Python is of the kind that a field says, or refused: nothing is taken that would mean nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from omnimuse.core.config import CacheConfig, Config, LaunchConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError

TOPICS: dict[str, Any] = {topic.name: type(topic.default) for topic in fields(Config)[1:]} | {"launch": LaunchConfig}
CHOICES = [(topic, field.name) for topic, kind in TOPICS.items() if topic != "deploy" for field in fields(kind)]


@pytest.mark.parametrize(("topic", "name"), CHOICES)
@pytest.mark.parametrize("value", [object(), [], b"x", (1.5, object())], ids=["object", "list", "bytes", "tuple"])
def test_what_is_of_another_kind_is_refused_by_the_name_of_its_field(topic: str, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^{topic} {name}=.* is not allowed; use "):
        TOPICS[topic](**{name: value})


@pytest.mark.parametrize(
    ("topic", "given", "said"),
    [
        ("decode", {"overlap": 10**350}, "overlap=1000.*0 is not allowed; use a number"),
        ("cache", {"kind": "dbcache", "threshold": 10**350}, "threshold=1000.*0 is not allowed; use a number"),
        ("host", {"threads": 10**350}, "threads=1000.*0 is not allowed; use a whole number"),
        ("decode", {"tile": float("nan")}, "tile=nan .*; use a whole number or None"),
        ("parallel", {"tensor": 1.5}, "tensor=1.5 .*; use a whole number"),
        ("host", {"processes": True}, "processes=True .*; use a whole number"),
        ("lora", {"folder": "adapters"}, "folder='adapters' .*; use a pathlib.Path or None"),
        ("quantize", {"schemes": {"transformer": 8}}, "schemes={'transformer': 8} .*; use a table of texts"),
        ("quantize", {"skip": "blocks.0"}, "skip='blocks.0' .*; use a tuple of texts"),
        ("offload", {"mode": None}, "mode=None .*; use one of none, components, layers"),
        ("schedule", {"memo_bytes": -1}, "memo_bytes=-1 is not allowed; use at least 0"),
        ("parallel", {"ring": 10**20}, "100000000000000000000 ranks, which is not allowed; use at most 65536"),
    ],
)
def test_it_is_told_what_to_use(topic: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TOPICS[topic](**given)


def test_whole_numbers_are_numbers() -> None:
    assert CacheConfig("teacache", threshold=1).threshold == 1
    assert ScheduleConfig(patience=2, max_run=None).patience == 2
