"""Files as attackers make them, small and costly, and what is left of them before a library sees them."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from omnimuse.media.foreign import PictureError, PictureLimits, kind_of, read_picture
from omnimuse.media.picture import pixels_of
from omnimuse.media.sandbox import Sandbox
from omnimuse.media.strip import PARTS, CostlyError, stripped
from tests.unit.media.boxes import inside
from tests.unit.media.hostile import chunk, encoded, many_scans, noise

MOST = PictureLimits().max_scanned


def strip(content: bytes, most: int = MOST) -> bytes:
    return stripped(content, str(kind_of(content)), most)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def names(content: bytes) -> set[bytes]:
    return {name for name in (b"zTXt", b"iCCP", b"fdAT", b"acTL", b"XMP ", b"ICCP", b"ICC_PROFILE") if name in content}


# -- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16"])
def test_a_png_keeps_its_pixels_in_every_mode(mode: str) -> None:
    image = noise(40, 30)
    image = (
        Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    )
    for how in ({}, {"transparency": 3} if mode in ("P", "L") else {}):
        file = encoded(image, "PNG", **how)
        assert np.array_equal(opened(strip(file)), opened(file))


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_keeps_its_pixels_in_every_mode(mode: str, how: dict[str, Any]) -> None:
    profile = random.Random(0).randbytes(100_000)
    file = encoded(noise(70, 50).convert(mode), "JPEG", icc_profile=profile, comment="a remark", **how)
    left = strip(file)
    assert np.array_equal(opened(left), opened(file))
    assert len(left) < len(file) - len(profile) and b"remark" not in left and not names(left)


@pytest.mark.parametrize("how", [{}, {"lossless": True}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_keeps_its_pixels(mode: str, how: dict[str, Any]) -> None:
    image = noise(60, 40).convert(mode)
    image.putpixel((0, 0), (1, 2, 3, 0)[: len(mode)])
    file = encoded(image, "WEBP", icc_profile=bytes(10_000), xmp=bytes(10_000), **how)
    left = strip(file)
    assert np.array_equal(opened(left), opened(file))
    assert len(left) < len(file) - 19_000 and not names(left)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_left(kind: str) -> None:
    frames = [noise(32, 32).rotate(90 * turn) for turn in range(4)]
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    left = strip(file)
    assert Image.open(io.BytesIO(left)).getexif() == {} and len(left) < len(file) / 2
    with Image.open(io.BytesIO(left)) as image:
        assert not image.is_animated if kind == "WEBP" else image.mode == "RGB"  # type: ignore[attr-defined]
    assert np.array_equal(opened(left)[:, :, :3], np.asarray(frames[0]))


def test_how_a_picture_is_turned_is_left_and_a_long_exif_is_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        left = strip(encoded(noise(20, 10), kind, exif=exif))
        assert Image.open(io.BytesIO(left)).getexif()[0x0112] == 6, kind
    exif[0x010E] = "x" * 70_000
    for kind in ("PNG", "WEBP"):
        assert len(strip(encoded(noise(20, 10), kind, exif=exif))) < 5_000


def test_whatever_is_wrong_inside_is_left_to_the_library() -> None:
    chance = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        file = encoded(noise(30, 30), kind, exif=Image.Exif())
        for _ in range(300):
            broken = bytearray(file[: chance.randrange(13, len(file))])
            for _ in range(chance.randrange(5)):
                broken[chance.randrange(12, len(broken))] = chance.randrange(256)
            assert len(stripped(bytes(broken), kind, MOST)) <= len(broken) + 12


# -- attacks ---------------------------------------------------------------------------------------------------------


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    file = many_scans(8000, 400)
    assert len(file) < 2**20
    with pytest.raises(CostlyError):
        strip(file)
    assert strip(file, 400 * 8000 * 8000), "as many as that many values allow"

    async def work(box: Sandbox) -> None:
        with pytest.raises(PictureError, match="without progressive scans") as caught:
            await read_picture(box, file)
        assert caught.value.code == "image_too_large"
        plain = noise(64, 64)
        assert (await read_picture(box, encoded(plain, "JPEG", progressive=True))).width == 64
        assert (await read_picture(box, many_scans(64, 400))).width == 64, "of a small picture they cost little"

    inside(work)


def test_a_progressive_jpeg_as_large_as_is_allowed_is_not_refused_for_its_scans() -> None:
    side = int(PictureLimits().max_pixels ** 0.5)
    for mode in ("RGB", "L"):
        file = encoded(Image.new(mode, (side, side)), "JPEG", progressive=True, subsampling=0)
        assert len(re.findall(rb"\xff\xda", file)) >= 6
        assert strip(file)


def test_text_and_profiles_that_unpack_to_megabytes_are_never_unpacked() -> None:
    packed = zlib.compress(bytes(2**20 - 10), 9)
    bombs = b"".join(chunk(b"zTXt", b"a\0\0" + packed) + chunk(b"iCCP", b"a\0\0" + packed) for _ in range(400))
    file = encoded(noise(16, 16), "PNG")
    file = file[:33] + bombs + file[33:]
    assert len(strip(file)) < 2000 < len(file) < 2**20
    with pytest.raises(ValueError, match="Too much memory"):  # what the library thinks of them
        Image.open(io.BytesIO(file)).load()

    async def work(box: Sandbox) -> None:
        assert np.array_equal(pixels_of(await read_picture(box, file)), np.asarray(noise(16, 16)))

    inside(work)


def test_a_file_of_countless_parts_is_refused() -> None:
    png, webp = encoded(noise(16, 16), "PNG"), encoded(noise(16, 16), "WEBP")
    jpeg = encoded(noise(16, 16), "JPEG")
    for file in (
        png[:33] + chunk(b"IDAT", b"") * (PARTS + 1) + png[33:],
        jpeg[:2] + b"\xff\xfe\0\2" * (PARTS + 1) + jpeg[2:],
        webp + riff(b"ANMF", b"") * (PARTS + 1),
    ):
        with pytest.raises(CostlyError):
            strip(file)


def test_an_animation_of_thousands_of_frames_costs_one() -> None:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(4)]
    file = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    at = file.index(b"ANMF")
    last = file[file.rindex(b"ANMF") :]
    file = file[:at] + file[at:] + last * 20_000
    left = strip(file)
    assert len(file) > 10**6 and len(left) < 500
    assert opened(left)[0, 0].tolist() == [0, 0, 0, 255]
    text = PngImagePlugin.PngInfo()
    text.add(b"fdAT", bytes(4))
    assert b"fdAT" not in strip(encoded(frames[0], "PNG", pnginfo=text))
