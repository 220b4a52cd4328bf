"""A result in a notebook: pictures, videos, what to know; and nothing of a prompt is taken for HTML."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

from omnimuse.core.errors import RequestError
from omnimuse.core.output import Result, TextRead
from omnimuse.core.params import DiffusionParams
from omnimuse.media.video import Video

RED = Image.new("RGB", (4, 2), "red")


def test_a_notebook_shows_every_picture_with_its_seed_and_warnings() -> None:
    texts = (TextRead("prompt", "text_encoder", 8, 3, "all that it takes"),)
    page = Result("1", "a <b> & c", DiffusionParams(), images=[RED, RED], seeds=[7, 8], texts=texts)._repr_html_()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)">', page)
    assert [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in pictures] == [(255, 0, 0)] * 2
    assert "a &lt;b&gt; &amp; c (seed 7, 8; the prompt has 11 tokens" in page


def test_a_notebook_plays_videos() -> None:
    page = Result("1", "x", DiffusionParams(), videos=[Video((RED,) * 3, 8.0)], seeds=[1])._repr_html_()
    content = base64.b64decode(re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)[0])
    assert content[4:8] == b"ftyp"


def test_a_notebook_says_why_there_is_nothing() -> None:
    assert Result("1", "x", DiffusionParams(), error=RequestError("a < b"))._repr_html_() == "<p>x: a &lt; b</p>"
