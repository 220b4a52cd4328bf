"""Which tests show that a feature works, for which families, and with which others: `@pytest.mark.shows("a", "b")`.

The names are those of `tools/feature_list.py`, of which `tools/features_page.py` makes `docs/features.md`. A mark
with several names says that the test has these features switched on together. The family is the one whose name is in
the test's id, unless the mark names `families`; with `wishes`, all requests of its tiny checkpoint are drawn, and
show what they ask for.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shows", type=Path, help="write to this file which tests show which features")


def pytest_collection_finish(session: pytest.Session) -> None:
    path = session.config.getoption("shows")
    if path is None:
        return
    marks = [(item.nodeid, mark.args, mark.kwargs) for item in session.items for mark in item.iter_markers("shows")]
    path.write_text(json.dumps(marks), encoding="utf-8")
