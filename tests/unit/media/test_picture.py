"""Pictures that people give: what becomes of rotation, transparency and colour, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from omnimuse.core.errors import RequestError
from omnimuse.media.picture import open_picture, picture_of, pixels_of


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
