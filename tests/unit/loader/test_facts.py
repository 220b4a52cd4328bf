"""A configuration becomes facts, or is refused in a sentence that names the key and its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import read_facts

FIXED = {"act": ("silu",), "out": (None, 16), "sides": ([2], [[2, 2]])}


@dataclass(frozen=True)
class Facts:
    width: int
    sides_of: tuple[Any, ...] = (1, 2)
    bias: bool = True


def read(**config: Any) -> Facts:
    return read_facts(Facts, config, "network/config.json", FIXED, {"dropout"})


def test_what_is_said_is_taken_and_what_is_not_is_the_default() -> None:
    assert read(width=8, sides_of=[3, [4, 5]], bias=False) == Facts(8, (3, (4, 5)), bias=False)
    assert read(width=8, bias=None) == Facts(8)


def test_keys_that_change_nothing_and_usual_values_are_accepted() -> None:
    assert read(width=8, _class_name="Net", dropout=0.1, act="silu", out=None, sides=[[2, 2]]) == Facts(8)
    assert read(width=8, out=16, sides=(2,)) == Facts(8)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 8, "act": "gelu"}, "network/config.json: act='gelu' is not supported; only 'silu' is"),
        ({"width": 8, "act": None}, "act=None is not supported"),
        ({"width": 8, "out": 8}, "out=8 is not supported; only 16 is"),
        ({"width": 8, "sides": [3]}, r"sides=\[3\] is not supported; only \[\[2, 2\]\] is"),
        ({"width": 8, "depth": 3}, r"network/config.json has an unknown key 'depth' \(3\); is it another model\?"),
        ({"bias": False}, "network/config.json has no width; use a complete checkpoint"),
        ({"width": None}, "has no width"),
    ],
)
def test_what_would_be_another_network_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**config)
