"""A result in a notebook: pictures, videos, what to know; and nothing of a prompt is taken for HTML."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

from omnimuse.core.errors import RequestError
from omnimuse.core.output import Part, Result, TextRead
from omnimuse.core.params import DiffusionParams
from omnimuse.media.sound import Sound
from omnimuse.media.video import Video

RED = Image.new("RGB", (4, 2), "red")


def test_a_notebook_shows_every_picture_with_its_seed_and_warnings() -> None:
    texts = (TextRead("prompt", "text_encoder", 8, 3, "all that it takes"),)
    page = Result(
        "1", "a <b> & c", DiffusionParams(), parts=((Part("image", RED),),) * 2, seeds=[7, 8], texts=texts
    )._repr_html_()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)">', page)
    assert [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((0, 0)) for one in pictures] == [(255, 0, 0)] * 2
    assert "a &lt;b&gt; &amp; c (seed 7, 8; the prompt has 11 tokens" in page


def test_a_notebook_plays_videos_and_sounds() -> None:
    sound = Sound(np.zeros((1, 80), np.float32), 8000)
    parts = ((Part("video", Video((RED,) * 3, 8.0)), Part("audio", sound)),)
    result = Result("1", "x", DiffusionParams(), parts=parts, seeds=[1])
    content = base64.b64decode(re.findall(r'src="data:video/mp4;base64,([^"]+)"', result._repr_html_())[0])
    assert content[4:8] == b"ftyp"
    content = base64.b64decode(re.findall(r'src="data:audio/wav;base64,([^"]+)"', result._repr_html_())[0])
    assert content[:4] == b"RIFF"
    assert (result.images, [video.fps for video in result.videos], result.audios) == ([], [8.0], [sound])


def test_a_notebook_says_why_there_is_nothing() -> None:
    assert Result("1", "x", DiffusionParams(), error=RequestError("a < b"))._repr_html_() == "<p>x: a &lt; b</p>"


def test_a_result_of_one_picture_is_a_picture_where_no_html_is_shown() -> None:
    one = Result("1", "x", DiffusionParams(), parts=((Part("image", RED),),), seeds=[1])
    png = one._repr_png_()
    assert png is not None and Image.open(io.BytesIO(png)).getpixel((0, 0)) == (255, 0, 0)
    two = Result("1", "x", DiffusionParams(), parts=((Part("image", RED),),) * 2, seeds=[1, 2])
    assert two._repr_png_() is None
    assert Result("1", "x", DiffusionParams(), error=RequestError("no"))._repr_png_() is None
