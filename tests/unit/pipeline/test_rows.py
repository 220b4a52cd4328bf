"""Which rows share a forward: those of one network that wears the same, within what one forward may cost."""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace
from typing import Any

import pytest

from omnimuse.pipeline.rows import group
from omnimuse.pipeline.stage import Row


def row(name: str, tokens: int, network: str = "drawn", worn: tuple[Hashable, ...] = (), width: int = 4) -> Row:
    state: Any = SimpleNamespace(adapters=lambda networks: worn)
    memory: Any = None
    return Row(state, name, network, None, tokens, (width,), memory)


def together(*rows: Row, packing: str = "varlen", alone: bool = False, **how: Any) -> list[str]:
    ctx: Any = SimpleNamespace(packing=lambda network: packing, adapters=SimpleNamespace(alone=alone))
    return ["".join(each.branch for each in part) for part in group(ctx, rows, **how)]


ROWS = row("a", 4), row("b", 6), row("c", 4, "other"), row("d", 4), row("e", 4, worn=("x",)), row("f", 4, worn=("x",))


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        pytest.param({}, ["abd", "c", "ef"], id="by network and by what it wears, in the order of the first"),
        pytest.param({"exact": True}, ["a", "b", "c", "d", "e", "f"], id="exact"),
        pytest.param({"alone": True}, ["abd", "c", "e", "f"], id="adapters that leave no row in company"),
        pytest.param({"packing": "stack"}, ["ad", "b", "c", "ef"], id="where lengths must be equal"),
        pytest.param({"tokens": 14}, ["abd", "c", "ef"], id="to the last token"),
        pytest.param({"tokens": 13}, ["ab", "d", "c", "ef"], id="as many as one may take"),
        pytest.param({"tokens": 3}, ["a", "b", "d", "c", "e", "f"], id="one row is always taken"),
        pytest.param({"tokens": 13, "fewer": {"other": 3}}, ["ab", "d", "c", "ef"], id="fewer of another network"),
        pytest.param({"tokens": 99, "fewer": {"drawn": 8}}, ["a", "b", "d", "c", "ef"], id="fewer of this network"),
    ],
)
def test_rows_share_a_forward_as_their_network_allows(how: dict[str, Any], parts: list[str]) -> None:
    assert together(*ROWS, **how) == parts


def test_tokens_that_are_written_share_a_forward_and_prompts_another() -> None:
    assert together(row("a", 1), row("b", 7), row("c", 1), row("d", 5), packing="tokens") == ["ac", "bd"]


def test_equal_lengths_of_other_shapes_do_not_share_a_forward_that_stacks() -> None:
    assert together(row("a", 4), row("b", 4, width=8), row("c", 4), packing="stack") == ["ac", "b"]
