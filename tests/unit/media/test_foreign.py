"""Pictures from strangers: legal ones are decoded, costly and damaged ones refused, and no answer is believed."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from omnimuse.core.request import Picture
from omnimuse.media.foreign import PictureError, PictureLimits, believed, read_picture, size_of
from omnimuse.media.picture import picture_of, pixels_of
from omnimuse.media.sandbox import Sandbox
from tests.unit.media.boxes import inside
from tests.unit.media.hostile import BOMB, damaged, encoded, noise, png

ORIENTATION = 0x0112


def test_pixels_survive_and_odd_modes_become_rgb() -> None:
    image = noise(50, 30)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))

    async def work(box: Sandbox) -> None:
        assert np.array_equal(pixels_of(await read_picture(box, encoded(image, "PNG"))), np.asarray(image))
        assert np.array_equal(
            pixels_of(await read_picture(box, encoded(image, "WEBP", lossless=True))), np.asarray(image)
        )
        assert (pixels_of(await read_picture(box, encoded(clear, "PNG"))) == 255).all(), (
            "white lies below what is clear"
        )
        assert (pixels_of(await read_picture(box, encoded(deep, "PNG"))) == 128).all()
        for mode in ("P", "1", "L", "LA", "I;16"):
            file = encoded(deep if mode == "I;16" else image.convert(mode), "PNG")
            for limits in (PictureLimits(), PictureLimits(keep_pixels=40)):
                picture = await read_picture(box, file, limits)
                assert pixels_of(picture).shape == (picture.height, picture.width, 3)
                assert picture.width * picture.height <= limits.keep_pixels
        red = pixels_of(await read_picture(box, encoded(cmyk, "JPEG"))).mean(axis=(0, 1))
        assert red[0] > 200 and max(red[1:]) < 60

    inside(work)


def test_a_picture_is_turned_as_its_exif_says_and_scaled_down_in_proportion() -> None:
    image = Image.new("RGB", (400, 200), "blue")
    image.paste("red", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # what is left is to be up

    async def work(box: Sandbox) -> None:
        for kind in ("JPEG", "PNG", "WEBP"):
            for keep, size in ((10**6, (200, 400)), (5000, (50, 100))):
                picture = await read_picture(box, encoded(image, kind, exif=exif), PictureLimits(keep_pixels=keep))
                assert (picture.width, picture.height) == size, kind
                pixels = pixels_of(picture).astype(int)
                assert pixels[0, 0, 0] > 200 and pixels[-1, 0, 2] > 200, kind

    inside(work)


def test_the_first_frame_of_an_animation_is_the_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]

    async def work(box: Sandbox) -> None:
        for kind in ("PNG", "WEBP"):
            file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            assert pixels_of(await read_picture(box, file))[0, 0].tolist() == [255, 0, 0]

    inside(work)


def test_bombs_are_refused_by_their_header_and_what_is_no_picture_is_refused_at_all() -> None:
    async def work(box: Sandbox) -> None:
        for file in (BOMB, png(9000, 9000), png(20_000, 2)):
            with pytest.raises(PictureError, match="64 megapixels") as caught:
                await read_picture(box, file)
            assert caught.value.code == "image_too_large"
        for name, file in damaged().items():
            with pytest.raises(PictureError) as caught:
                await read_picture(box, file)
            assert caught.value.code == "invalid_image", name
            assert "Image" not in str(caught.value) and "0x" not in str(caught.value)
        assert (await read_picture(box, encoded(noise(9, 7), "PNG"))).width == 9

    inside(work)


def test_what_a_picture_carries_besides_its_pixels_is_left_behind() -> None:
    secret = b"<script>alert(1)</script>PK\x03\x04"

    async def work(box: Sandbox) -> None:
        for kind in ("PNG", "JPEG"):
            picture = await read_picture(box, encoded(noise(16, 16), kind, comment="secret") + secret)
            assert secret not in picture.png and b"secret" not in picture.png
            assert size_of(picture.png) == (16, 16)

    inside(work)


def test_only_a_plain_png_is_believed() -> None:
    good = picture_of(noise(6, 5)).png
    limits = PictureLimits(keep_pixels=30)
    assert believed(good, limits) == Picture(6, 5, good)
    text = struct.pack(">I", 4) + b"tEXtxxxx" + struct.pack(">I", zlib.crc32(b"tEXtxxxx"))
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    lies = {
        "nothing": b"",
        "something before": b"ok\n" + good,
        "a tail": good + b"x",
        "cut off": good[:-1],
        "a broken sum": good[:20] + b"\xff" + good[21:],
        "another chunk": good[:33] + text + good[33:],
        "a palette": encoded(noise(6, 5).convert("P"), "PNG"),
        "transparency": encoded(noise(6, 5).convert("RGBA"), "PNG"),
        "a thousand chunks": good[:33] + empty * 1000 + good[33:],
        "too many pixels": picture_of(noise(6, 6)).png,
        "no pixels": png(0, 0),
    }
    taken = []
    for name, answer in lies.items():
        with suppress(PictureError):
            believed(answer, limits)
            taken.append(name)
    assert not taken


def test_the_front_does_not_need_pillow_to_ask() -> None:
    script = "import sys, omnimuse.server.http.uploads; sys.exit(bool({'PIL', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_hostile_files_are_small() -> None:
    assert len(BOMB) < 1000
    assert all(len(file) < 10**5 for file in damaged().values())
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(BOMB))
