"""The page of features says what the doors, the build passes and the tests say."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from omnimuse.core.config import CacheConfig
from tests.checkpoints.families import FAMILIES
from tools.feature_guests import ASKED_OF_GUESTS, VISITING
from tools.feature_list import ATTENTION, FEATURES, STANDING, TELLING, TOLD, Feature, Impossible, Stand
from tools.features_page import DRAWING, PAGE, Cell, Shown, by_test, contradictions, family_in, of_pair, page, topics

CELL = re.compile(r"(works|refused|impossible) \d+")
"""None is untested: what no test shows would be a gap of the page."""
TABLES = {"draws": FEATURES, "attends": ATTENTION, "tells": TOLD, "visits": ASKED_OF_GUESTS}
FEATURE = {feature.name: feature for feature in FEATURES}


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_page_is_what_make_features_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make features`"


@pytest.mark.parametrize("features", [pytest.param(each, id=name) for name, each in TABLES.items()])
def test_every_cell_of_a_family_says_one_of_the_words(features: tuple[Feature, ...]) -> None:
    rows = [row for row in rows_of("`") if len(row) == len(features) + 1]
    assert rows
    for row in rows:
        assert all(CELL.fullmatch(cell) for cell in row[1:]), row


def test_every_family_has_a_row() -> None:
    expected = [family.name for family in (*DRAWING, *DRAWING, *TELLING, *VISITING, *VISITING)]
    assert [row[0].strip("`") for row in rows_of("`")] == expected


@pytest.mark.parametrize("features", [(*FEATURES, *ATTENTION), TOLD], ids=["draws", "tells"])
def test_every_pair_of_features_says_one_of_the_words(features: tuple[Feature, ...]) -> None:
    names = [feature.name for feature in features if feature.paired]
    rows = [row for row in rows_of(rf"({'|'.join(map(re.escape, names))}) \|") if len(row) == len(names)]
    assert [row[0] for row in rows] == names
    for number, row in enumerate(rows):
        assert all(CELL.fullmatch(cell) for cell in row[1 : number + 1]), row


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


def rows_of(beginning: str) -> list[list[str]]:
    """The rows of the page's tables that begin like this."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(rf"\| {beginning}", line)
    ]


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
