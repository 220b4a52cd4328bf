"""What a notebook shows while pictures are drawn."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnimuse.core.output import Preview, Progress
from omnimuse.observe.notebook import PERIOD, Notebook, notebook
from omnimuse.observe.progress import Tracker


def test_the_bar_moves_the_latest_look_stays_and_all_goes_at_the_end() -> None:
    pages: list[str] = []
    now = [0.0]
    with Notebook(Tracker(1), pages.append, lambda: now[0]) as shown:
        for step in range(1, 5):
            now[0] += 2 * PERIOD
            shown(Progress("1", 0, "denoise", step, 4))
            if step == 2:
                now[0] += 2 * PERIOD
                shown(Preview("1", 0, 2, np.full((8, 16, 3), 200, np.uint8)))
    assert [re.search(r'value="([\d.]+)"', page)[1] for page in pages[:-1]] == [  # type: ignore[index]
        "0.225", "0.450", "0.450", "0.675", "0.900",
    ]  # fmt: skip
    looks = [re.search(r"base64,([^\"]+)", page) for page in pages]
    assert [look is not None for look in looks] == [False, False, True, True, True, False]
    assert looks[2] is not None
    assert Image.open(io.BytesIO(base64.b64decode(looks[2][1]))).size == (16, 8)
    assert "denoise 3/4" in pages[3] and pages[-1] == ""


def test_events_that_come_too_fast_for_a_page_are_taken_together() -> None:
    pages: list[str] = []
    with Notebook(Tracker(1), pages.append, lambda: 1.0) as shown:
        for step in range(1, 100):
            shown(Progress("1", 0, "denoise", step, 100))
    assert len(pages) == 2


def test_what_is_said_is_no_html() -> None:
    pages: list[str] = []
    Notebook(Tracker(1), pages.append).say("loading <b>")
    assert pages == ["<p>loading &lt;b&gt;</p>"]


def test_without_ipython_there_is_no_notebook() -> None:
    assert notebook() is None


IPYTHON = """
pages = []
class Shell:
    config = {"IPKernelApp": {}}
def get_ipython():
    return Shell()
"""
DISPLAY = """
from IPython import pages
class HTML:
    def __init__(self, data):
        self.data = data
class Handle:
    def update(self, page):
        pages.append(page.data)
def display(page, display_id):
    pages.append(page.data)
    return Handle()
"""
PROGRAM = """
import IPython
from omnimuse import Omni
with Omni("omnimuse/shapes") as omni:
    omni.generate("a red circle", seed=1, num_inference_steps=30)
    print(len(IPython.pages) > 1, any("<img" in page for page in IPython.pages), repr(IPython.pages[-1]))
    before = len(IPython.pages)
    omni.generate("a red circle", seed=1, num_inference_steps=2, progress=False)
    print(len(IPython.pages) == before)
"""


@pytest.mark.costly(turns=3)
def test_generate_in_a_kernel_shows_a_bar_and_looks(tmp_path: Path) -> None:
    """A kernel is what IPython says of itself; a library that says the same stands in for it."""
    package = tmp_path / "IPython"
    package.mkdir()
    (package / "__init__.py").write_text(IPYTHON)
    (package / "display.py").write_text(DISPLAY)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert told.stdout.splitlines() == ["True True ''", "True"], told.stderr
