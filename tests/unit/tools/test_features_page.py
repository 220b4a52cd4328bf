"""The page of features says what the doors, the build passes and the tests say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from omnimuse.core.config import CacheConfig
from tests.checkpoints.families import FAMILIES
from tools.feature_guests import ASKED_OF_GUESTS, VISITING
from tools.feature_list import ATTENTION, FEATURES, STANDING, TELLING, TOLD, Feature, Impossible, Stand
from tools.features_page import (
    ASKED,
    BEGIN,
    DRAWING,
    GUESTS,
    PAGE,
    PAIRS,
    WIDE,
    Cell,
    Shown,
    by_test,
    contradictions,
    family_in,
    of_pair,
    page,
    requests_of,
    topics,
)

CELL = re.compile(r"(works|refused|impossible|not tried) \d+")
"""None is untested: what no test shows would be a gap of the page."""
TEST = re.compile(r"`tests/[\w/]+\.py::\w+`")
PAIRED: Sequence[Sequence[Feature]] = ((*FEATURES, *ATTENTION), TOLD)
"""Features that are asked of together."""
FEATURE = {feature.name: feature for feature in FEATURES}


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_the_page_is_what_make_features_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make features`"


def test_its_words_are_those_of_today() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.startswith(BEGIN) and GUESTS in text and PAIRS in text
    about = {each.name: each.about for each in (*FEATURES, *ATTENTION, *TOLD)}
    assert next(tables()) == [["feature", "what it is"], *map(list, about.items())], "run `make features`"


def test_heads_are_features_and_rows_are_families_of_today() -> None:
    """Of every table the whole, so that nothing is left out and no cell is of something else."""
    found = [([*table[0][1:]], [row[0].strip("`") for row in table[1:]]) for table, _ in told()]
    expected = [
        ([each.name for each in features], [family.name for family in families])
        for features, families in ((FEATURES, DRAWING), (ATTENTION, DRAWING), (TOLD, TELLING))
    ]
    expected.append(([each.name for each in ASKED_OF_GUESTS], [guest.name for guest in VISITING]))
    for features in PAIRED:
        names = [each.name for each in features if each.paired]
        expected.append((names[:-1], names))
    assert found == expected, "run `make features`"


def test_every_cell_says_one_of_the_words_and_leads_to_what_is_behind_it() -> None:
    for table, reasons in told():
        cells = [cell for row in table[1:] for cell in row[1:] if cell]
        assert all(CELL.fullmatch(cell) for cell in cells)
        assert {int(cell.rpartition(" ")[2]) for cell in cells} == set(range(1, len(reasons) + 1))
        for cell in cells:
            word, _, number = cell.rpartition(" ")
            assert (word == "works") == (TEST.fullmatch(reasons[int(number) - 1]) is not None), cell


def test_two_features_are_asked_of_once() -> None:
    for table, _ in told()[4:]:
        assert [[bool(cell) for cell in row[1:]] for row in table[1:]] == [
            [at < number for at in range(len(table) - 2)] for number in range(len(table) - 1)
        ]


def test_every_test_on_the_page_is_there_and_says_that_it_shows_that() -> None:
    """Of the family, where its mark names any; of two features, both at once."""
    names = {family.name for family in ASKED}
    wrong = set[str]()
    for (head, *rows), reasons in told():
        cells = [(row[0], *each) for row in rows for each in zip(head[1:], row[1:], strict=True)]
        for begins, feature, cell in cells:
            name, (word, _, number) = begins.strip("`"), cell.rpartition(" ")
            wanted, families = ({feature}, {name}) if name in names else ({name, feature}, names)
            if word == "works" and not says(test := reasons[int(number) - 1], wanted, families):
                wrong.add(f"{test} does not say that it shows {' with '.join(wanted)} (row {name})")
    assert not wrong, "\n".join(sorted(wrong))


def says(test: str, wanted: set[str], families: set[str]) -> bool:
    """Whether one of its marks says that it shows all of `wanted`, of one of `families`."""
    for args, besides in marks_of(test):
        own = {WIDE.get(name, name) for name in besides.get("families", families)} & families
        for family in own if besides.get("wishes") else list(own)[:1]:
            requests = requests_of(family) if besides.get("wishes") else ()
            if Shown(test, frozenset(args), requests, family).shows(wanted):
                return True
    return False


@cache
def marks_of(test: str) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """What a test, which is called ``file::name``, is marked with as shown: itself or one of its cases."""
    file, name = test.strip("`").split("::")
    found = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name, None)
    marks = list(getattr(found, "pytestmark", ()))
    cases = [case for mark in marks if mark.name == "parametrize" for case in mark.args[1]]
    marks += [mark for case in cases for mark in getattr(case, "marks", ())]
    return [(mark.args, mark.kwargs) for mark in marks if mark.name == "shows"]


def test_what_is_too_much_for_one_family_goes_together_where_it_is_not_for_another(tiny: Callable[[str], Path]) -> None:
    """Two heads of an attention are not enough for two ranks by two, and four are."""
    pair = (FEATURE["tensor"], FEATURE["ulysses"])
    few, enough = (
        Stand(family, tiny(family.name)) for name in STANDING[:2] for family in FAMILIES if family.name == name
    )
    shown = [Shown("a::b", frozenset(FEATURE), (), enough.family.name)]
    both, one = (dict.fromkeys(FEATURE, stands) for stands in ([few, enough], [few]))
    assert of_pair(both, pair, shown, STANDING) == Cell("works", "`a::b`")
    assert of_pair(one, pair, shown, STANDING).word == "refused"


def test_a_step_cache_goes_with_a_mask_and_a_series_and_not_with_another_one() -> None:
    together = [FEATURE[name] for name in ("MagCache", "TaylorSeer", "step masks")]
    made = CacheConfig("magcache", 9.0, warm_up=1, order=1, mask="medium")
    assert topics(together)["cache"] == made
    with pytest.raises(Impossible, match="two values of one choice"):
        topics([*together, FEATURE["DBCache"]])


Rows = list[list[str]]


def tables() -> Iterator[Rows]:
    """The tables of the page, each with its head."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for is_table, found in groupby(lines, key=lambda line: line.startswith("|")):
        if is_table:
            head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in found)
            yield [head, *rows]


def told() -> list[tuple[Rows, list[str]]]:
    """Those that have cells, in the order of the page, and what their numbers lead to."""
    reasons, ended = list[list[str]](), True
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if numbered := re.fullmatch(r"\d+\. (.*)", line):
            if ended:
                reasons.append([])
            reasons[-1].append(numbered[1])
        ended = numbered is None
    return list(zip((table for table in tables() if len(table[0]) > 2), reasons, strict=True))


def test_a_test_shows_what_it_is_marked_with_beside_what_a_request_of_it_has() -> None:
    shown = Shown("a::b[X]", frozenset(["tensor"]), (frozenset(["mask", "picture in"]), frozenset(["text"])), "X")
    assert shown.shows(["tensor", "mask"]) and shown.shows(["mask", "picture in"])
    assert not shown.shows(["mask", "text"]), "no request has both"
    assert not shown.shows(["ring", "mask"])
    assert by_test([shown], ["tensor"], ["X"]) == Cell("works", "`a::b`")
    assert by_test([shown], ["tensor"], ["Y"]) == Cell("untested")


def test_a_mark_that_the_id_of_its_test_contradicts_is_found() -> None:
    assert contradictions("x::y[writes-A-3-fp8]", ["tensor", "int8"]) == ("int8", "fp8")
    assert contradictions("x::y[writes-A-3-int8-dynamic]", ["int8"]) == ("int8", "int8-dynamic")
    assert contradictions("x::y[writes-A-3]", ["int8", "int4"]) == ("int8", "int4")
    assert contradictions("x::y[writes-A-3-int8-dynamic]", ["tensor", "int8-dynamic"]) == ()
    assert contradictions("x::y[A-layers]", ["int8", "layers", "TeaCache", "TaylorSeer"]) == ()


def test_the_family_of_a_test_is_the_longest_that_its_id_names_whole() -> None:
    assert family_in("x::y[WanPipeline-2.1-I2V-layers]") == ("WanPipeline-2.1-I2V",)
    assert family_in("x::y[float32-1-WanPipeline-2.1]") == ("WanPipeline-2.1",)
    assert family_in("x::y[answers-Qwen3ForCausalLM-tied]") == ("Qwen3ForCausalLM-tied",)
    assert family_in("x::y[WanPipelines]") == ()
    assert family_in("x::y") == ()
