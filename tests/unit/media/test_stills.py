"""Stills are made of the right frames, in the right colours, and no larger than promised."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("av", reason="PyAV is not installed")

from omnimuse.media.stills import spritesheet, thumbnail
from omnimuse.media.video import Video, save_video


def film(path: Path, frames: int, size: tuple[int, int] = (64, 32)) -> Path:
    """A video whose frame number i has a red of 10 i and a green of 200."""
    pictures = tuple(Image.new("RGB", size, (10 * i, 200, 30)) for i in range(frames))
    save_video(Video(pictures, 8.0), path, {})
    return path


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def near(pixel: object, wanted: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(is_ - should) <= 6 for is_, should in zip(pixel, wanted, strict=True))


def test_a_thumbnail_is_the_middle_frame_in_its_own_colours(tmp_path: Path) -> None:
    content = thumbnail(film(tmp_path / "a.mp4", 21))
    with Image.open(io.BytesIO(content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (64, 32))
    assert near(opened(content).getpixel((30, 15)), (100, 200, 30))


def test_a_large_video_gives_a_thumbnail_of_512_pixels_at_most(tmp_path: Path) -> None:
    assert opened(thumbnail(film(tmp_path / "a.mp4", 1, (320, 1024)))).size == (160, 512)


@pytest.mark.parametrize(
    ("frames", "size", "shown"),
    [(1, (64, 32), [0]), (3, (128, 64), [0, 1, 2]), (16, (256, 128), [*range(16)]), (24, (256, 128), [0, 2, 3, 5])],
)
def test_a_sheet_has_frames_in_even_distances_row_by_row(
    tmp_path: Path, frames: int, size: tuple[int, int], shown: list[int]
) -> None:
    content = spritesheet(film(tmp_path / "a.mp4", frames))
    sheet, columns = opened(content), size[0] // 64
    assert Image.open(io.BytesIO(content)).format == "JPEG" and sheet.size == size
    for tile, number in enumerate(shown):
        place = (tile % columns * 64 + 32, tile // columns * 32 + 16)
        assert near(sheet.getpixel(place), (10 * number, 200, 30)), (tile, number)


def test_the_frames_of_a_sheet_are_small(tmp_path: Path) -> None:
    assert opened(spritesheet(film(tmp_path / "a.mp4", 2, (640, 320)))).size == (640, 160)
