"""Pictures that people give: what becomes of rotation, transparency and colour, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from omnimuse.core.errors import RequestError
from omnimuse.media.picture import mask_of, open_mask, open_picture, picture_of, pixels_of


def gradient(width: int, height: int) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def test_the_pixels_are_kept_to_the_bit() -> None:
    image = gradient(5, 3)
    picture = picture_of(image)
    assert (picture.width, picture.height) == (5, 3)
    assert np.array_equal(pixels_of(picture), np.asarray(image))
    assert picture.digest == picture_of(image).digest != picture_of(gradient(3, 5)).digest


def test_a_file_that_says_it_lies_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    image, exif = gradient(6, 2), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "side.png", exif=exif)
    picture = open_picture(tmp_path / "side.png")
    assert (picture.width, picture.height) == (2, 6)
    assert np.array_equal(pixels_of(picture), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0)).convert(mode)
    assert (pixels_of(picture_of(clear)) == 255).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert pixels_of(picture_of(Image.new(mode, (3, 2)))).shape == (2, 3, 3)


DEEP = np.array([[0, 128, 257, 0x4000, 0x8000, 65535]], np.uint16)
EIGHT = [0, 0, 1, 64, 128, 255]
"""Grey of 16 bits, and what it is in 8: 65535 is white, as 255 is."""


def greys(given: Image.Image | Path) -> list[int]:
    pixels = pixels_of(open_picture(given))
    assert (pixels == pixels[:, :, :1]).all()
    return [int(grey) for grey in pixels[0, :, 0]]


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_grey_of_16_bits_is_scaled_by_its_range(mode: str) -> None:
    image = Image.frombytes(mode, (6, 1), DEEP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert greys(image) == EIGHT


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_files_with_grey_of_16_bits_are_scaled_by_their_range(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 6 1 65535 " + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(path)
    assert greys(path) == EIGHT


def test_floats_from_0_to_1_are_scaled_and_others_refused(tmp_path: Path) -> None:
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    Image.fromarray(values).save(tmp_path / "floats.tif")
    assert greys(tmp_path / "floats.tif") == greys(Image.fromarray(values)) == [0, 64, 128, 255]
    for high, words in ((255, "from 0 to 255"), (-1, "from -1 to 0"), (np.nan, "from nan"), (np.inf, "from 0 to inf")):
        with pytest.raises(RequestError, match=f"floats {words}.*save it with 8 bits"):
            picture_of(Image.fromarray(np.array([[0, high]], np.float32)))


def test_integers_of_32_bits_do_not_say_what_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 70_000]], np.int32))
    image.save(tmp_path / "wide.tif")
    for given in (image, tmp_path / "wide.tif"):
        with pytest.raises(RequestError, match=r"32 bits \(from 0 to 70000\).*8 or 16 bits") as caught:
            open_picture(given)
        assert caught.value.param == "images"


def test_a_clear_grey_of_16_bits_is_white_and_a_deep_picture_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    Image.fromarray(DEEP).save(tmp_path / "deep.png", transparency=257, exif=exif)
    assert greys(tmp_path / "deep.png") == [*EIGHT[:2], 255, *EIGHT[3:]][::-1]


def test_files_that_something_would_have_to_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n")
    with pytest.raises(RequestError, match=r"a file of EPS, which is not read; use one of PNG, JPEG"):
        open_picture(tmp_path / "a.png")


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    for given, words in (
        (tmp_path / "none.png", "there is no picture"),
        (tmp_path / "notes.png", "cannot read"),
        (7, "got int"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            open_picture(given)
        assert caught.value.param == "images"


def shades(image: Image.Image) -> list[list[int]]:
    pixels = pixels_of(mask_of(image))
    assert (pixels == pixels[..., :1]).all(), "no colours"
    return [[int(shade) for shade in row] for row in pixels[..., 0]]


def test_a_mask_speaks_by_what_is_transparent_in_it_and_if_nothing_is_by_its_brightness() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    clear.putpixel((1, 0), (10, 20, 30, 0))
    assert shades(clear) == [[0, 255]], "whatever colours lie there"
    assert shades(clear.convert("PA")) == [[0, 255]]
    bright = Image.new("L", (2, 1), 0)
    bright.putpixel((1, 0), 200)
    assert shades(bright) == [[0, 200]]
    assert shades(bright.convert("RGBA")) == [[0, 200]], "an alpha channel that hides nothing says nothing"


def test_a_mask_is_opened_from_a_file_as_a_picture_is(tmp_path: Path) -> None:
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(tmp_path / "mask.png")
    assert (pixels_of(open_mask(str(tmp_path / "mask.png"))) == 255).all()
    with pytest.raises(RequestError, match=r"there is no picture .*nothing.png") as caught:
        open_mask(tmp_path / "nothing.png")
    assert caught.value.param == "mask"
